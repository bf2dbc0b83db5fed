"""Reading schedules that people write: a method with its options, a list of phases, others' files.

A file of phases is ours, or one of finetuning-scheduler (Lightning), told by its numbered phases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from frostline.documents import parse_yaml, read_text
from frostline.errors import FrostlineError, ScheduleError
from frostline.schedules.base import Schedule
from frostline.schedules.explicit import Explicit, Phase
from frostline.schedules.numbered import are_numbered, read_numbered
from frostline.schedules.places import Places
from frostline.schedules.written import from_plain
from frostline.selection import as_selector
from frostline.selection.suggest import nearest


def load_schedule(
    path_or_text: str | Path, *, patience: int | None = None, base_lr: float | None = None
) -> Schedule:
    r"""Read a schedule from a YAML file, or from YAML.

    Args:
        path_or_text: a path; or a string that has a line break, or is a mapping or list in one
            line (``{schedule: lisa, period: 3}``).
        patience: for a file of finetuning-scheduler, epochs without improvement after which a
            phase ends that has no ``max_transition_epoch``: that is not in the file.
        base_lr: for such a file, the optimizer's learning rate, which its ``lr`` are compared to.

    Raises:
        ScheduleError: (a ValueError) it can't be read, or asks for what can't be said; with the
            file and the line where there is one.

    >>> load_schedule("- {epoch: 0, train: head}\n- {epoch: 2, train: '**'}\n").phases[1].epoch
    2
    """
    text, source = _text(path_or_text)
    document = parse_yaml(text, source=source, error=ScheduleError)
    places = Places(text, source)
    if document is None:
        raise ScheduleError(f"{source} is empty: write a list of phases, or 'schedule: NAME'")
    if isinstance(document, list):
        return _explicit(document, "max", places)
    if isinstance(document, Mapping):
        if are_numbered(document):
            return read_numbered(document, places, patience=patience, base_lr=base_lr)
        if "phases" in document and document.get("schedule", Explicit.name) == Explicit.name:
            return _with_phases(document, places)
        if "schedule" in document:
            return from_plain(dict(document), source=source)
    keys = [str(key) for key in document] if isinstance(document, Mapping) else []
    hint = nearest(keys[0], ["schedule", "phases"]) if keys else ""
    raise ScheduleError(
        f"{source}: expected a list of 'phases', a 'schedule' with its options, or"
        f" finetuning-scheduler's numbered phases; got {keys or document!r:.60}.{hint}"
    )


def _text(path_or_text: str | Path) -> tuple[str, str]:
    if isinstance(path_or_text, str) and ("\n" in path_or_text or path_or_text[:1] in ("{", "[")):
        return path_or_text, "schedule"
    return read_text(Path(path_or_text), called="the schedule", error=ScheduleError), str(
        path_or_text
    )


def _with_phases(document: Mapping[object, object], places: Places) -> Explicit:
    known = ("schedule", "phases", "better")
    for key in document:
        if key not in known:
            raise ScheduleError(f"{places(key)}: unknown key {key!r}.{nearest(str(key), known)}")
    phases = document["phases"]
    if not isinstance(phases, list):
        raise ScheduleError(f"{places('phases')}: 'phases' must be a list, got {phases!r:.60}")
    return _explicit(phases, document.get("better", "max"), places, "phases")


def _explicit(phases: list[object], better: object, places: Places, *path: object) -> Explicit:
    read = [_phase(phase, places, *path, n) for n, phase in enumerate(phases)]
    try:
        return Explicit(read, better=better)  # type: ignore[arg-type]  # it is checked there
    except ScheduleError as error:
        raise ScheduleError(f"{places(*path)}: {error}") from error


def _phase(value: object, places: Places, *path: object) -> Phase:
    known = [field.name for field in fields(Phase)]
    if not isinstance(value, Mapping):
        raise ScheduleError(
            f"{places(*path)}: a phase is a mapping with {', '.join(known)}, got {value!r:.60}"
        )
    for key in value:
        if key not in known:
            raise ScheduleError(
                f"{places(*path, key)}: unknown key {key!r} in a phase.{nearest(str(key), known)}"
            )
    train = value.get("train")
    selectors = [train] if isinstance(train, str) else train
    if not isinstance(selectors, list) or not all(isinstance(each, str) for each in selectors):
        raise ScheduleError(
            f"{places(*path)}: 'train' must be a selector or a list of them, got {train!r:.60};"
            " put a name that is a number into quotes"
        )
    rates = value.get("rates", {})
    if not isinstance(rates, Mapping):
        raise ScheduleError(
            f"{places(*path, 'rates')}: 'rates' must map selectors to factors, got {rates!r:.60}"
        )
    try:
        for selector in (*selectors, *rates):
            as_selector(selector)
        return Phase(**{**value, "train": tuple(selectors)})
    except FrostlineError as error:
        raise ScheduleError(f"{places(*path)}: {error}") from error
