"""The schedules of finetuning-scheduler (Lightning): numbered phases, each of which thaws more.

A phase lists parameters, by full name or by a regular expression that is matched from the start of
the name; they train from that phase on. It ends at the epoch ``max_transition_epoch``, or without
one when its early stopping has run out of patience.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from frostline.errors import FrostlineError, ScheduleError
from frostline.schedules.explicit import Explicit
from frostline.schedules.places import Places
from frostline.selection import as_selector
from frostline.selection.suggest import nearest

_KEYS = ("params", "max_transition_epoch", "lr")
_OF_ITS_OWN = ("new_optimizer", "new_lr_scheduler")
_PLAIN_NAME = re.compile(r"[\w.-]+")


def are_numbered(document: Mapping[object, object]) -> bool:
    """Whether all keys are numbers, as finetuning-scheduler numbers its phases."""
    return bool(document) and all(str(key).isdigit() for key in document)


def read_numbered(
    document: Mapping[object, object],
    places: Places,
    *,
    patience: int | None,
    base_lr: float | None,
) -> Explicit:
    """The schedule as phases of our own; the metric that stalls is taken for a loss.

    Args:
        document: number → phase.
        places: where they stand.
        patience: epochs without improvement that end a phase without ``max_transition_epoch``.
        base_lr: the optimizer's learning rate, if phases give one of their own.

    Raises:
        ScheduleError: (a ValueError) numbers with gaps, unknown keys, or what can't be said here.
    """
    by_number = {int(str(key)): (key, value) for key, value in document.items()}
    if sorted(by_number) != list(range(len(document))):
        raise ScheduleError(
            f"{places()}: phases are numbered from 0 without gaps, got {sorted(by_number)}"
        )
    train: list[str] = []
    rates: dict[str, float] = {}
    phases: list[dict[str, Any]] = []
    begins: dict[str, int] = {"epoch": 0}
    for number in range(len(by_number)):
        key, value = by_number[number]
        phase = _checked(value, places, key)
        added = [_selector(text, places, key, n) for n, text in enumerate(phase["params"])]
        train += added
        if phase.get("lr") is not None:
            rate = _rate(phase["lr"], places, key, number=number, base_lr=base_lr)
            rates.update(dict.fromkeys(added, rate))
        phases.append({**begins, "train": list(train), "rates": dict(rates)})
        if number + 1 < len(by_number):
            begins = _end(phase.get("max_transition_epoch"), places, key, patience=patience)
    try:
        return Explicit(phases, better="min")
    except ScheduleError as error:
        raise ScheduleError(f"{places()}: {error}") from error


def _checked(value: object, places: Places, key: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ScheduleError(
            f"{places(key)}: phase {key} must be a mapping with 'params', got {value!r:.60}"
        )
    for field in value:
        if field in _OF_ITS_OWN:
            raise ScheduleError(
                f"{places(key, field)}: phase {key} has a {field!r}: a schedule here says what"
                " trains and by which factor on the rate; keep one optimizer and scheduler"
            )
        if field not in _KEYS:
            raise ScheduleError(
                f"{places(key, field)}: phase {key} has an unknown key {field!r}."
                f"{nearest(str(field), _KEYS)}"
            )
    params = value.get("params")
    if not isinstance(params, list) or not params or not all(isinstance(p, str) for p in params):
        raise ScheduleError(
            f"{places(key, 'params')}: phase {key} needs 'params', a list of names or regular"
            f" expressions, got {params!r:.60}"
        )
    return value


def _selector(text: str, places: Places, key: object, at: int) -> str:
    """A full name (or whole components from the root), else a regex matched from the start."""
    if _PLAIN_NAME.fullmatch(text):
        return rf"re:^{re.escape(text)}(\.|$)"
    selector = f"re:^(?:{text})" if "|" in text else f"re:^{text.removeprefix('^')}"
    try:
        as_selector(selector)
    except FrostlineError as error:
        raise ScheduleError(f"{places(key, 'params', at)}: {error}") from error
    return selector


def _rate(
    value: object, places: Places, key: object, *, number: int, base_lr: float | None
) -> float:
    place = places(key, "lr")
    if number == 0:
        raise ScheduleError(
            f"{place}: phase 0 trains at the optimizer's own rate, which finetuning-scheduler takes"
            " too: drop 'lr' here"
        )
    try:
        rate = float(value)  # type: ignore[arg-type]  # YAML reads 1e-06 as a string
    except (TypeError, ValueError):
        raise ScheduleError(f"{place}: 'lr' must be a number, got {value!r}") from None
    if base_lr is None:
        raise ScheduleError(
            f"{place}: 'lr: {value}' is a rate, and phases here have factors on the optimizer's:"
            " pass base_lr=, that rate, to compare with"
        )
    if not rate > 0 or not base_lr > 0:
        raise ScheduleError(f"{place}: rates must be above 0, got {rate} and base_lr={base_lr}")
    return rate / base_lr


def _end(value: object, places: Places, key: object, *, patience: int | None) -> dict[str, int]:
    """When the next phase begins."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ScheduleError(
            f"{places(key, 'max_transition_epoch')}: must be a whole number, got {value!r}"
        )
    if isinstance(value, int) and value >= 0:
        return {"epoch": value}
    if patience is None:
        raise ScheduleError(
            f"{places(key)}: phase {key} ends when early stopping says so, and its patience is not"
            " in the file: pass patience=, or give the phase a 'max_transition_epoch'"
        )
    return {"stall": patience}
