"""Schedules as plain data: what YAML, a checkpoint and the command line hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import yaml

from frostline.documents import parse_yaml
from frostline.errors import ScheduleError
from frostline.schedules.base import Schedule
from frostline.schedules.registry import registry
from frostline.selection.suggest import nearest


def to_plain(schedule: Schedule) -> dict[str, Any]:
    """The method's name and its options, as JSON and YAML hold them.

    >>> from frostline.schedules import LISA
    >>> to_plain(LISA(period=3))
    {'schedule': 'lisa', 'layers': None, 'period': 3, 'seed': 0}
    """
    options = asdict(schedule)  # type: ignore[call-overload]
    return {"schedule": schedule.name, **{key: _plain(value) for key, value in options.items()}}


def from_plain(document: object, *, source: str = "schedule") -> Schedule:
    """Read a schedule from its name, or from what :func:`to_plain` gave.

    Args:
        document: ``"lisa"``, or ``{"schedule": "lisa", "period": 3}``; options that are left
            out have their defaults.
        source: what it is called in errors.

    Raises:
        ScheduleError: (a ValueError) an unknown name or option, or a value out of range.

    >>> from_plain({"schedule": "lisa", "period": 3})
    LISA(layers=None, period=3, seed=0)
    """
    if isinstance(document, str):
        document = {"schedule": document}
    if not isinstance(document, Mapping) or "schedule" not in document:
        raise ScheduleError(
            f"{source}: expected the key 'schedule' with a method's name, got {document!r:.60}"
        )
    options = {key: value for key, value in document.items() if key != "schedule"}
    method = _method(document["schedule"], source)
    known = [field.name for field in fields(method)]  # type: ignore[arg-type]
    for key in options:
        if key not in known:
            raise ScheduleError(
                f"{source}: {document['schedule']} has no option {key!r}."
                f"{nearest(str(key), known)} All options: {', '.join(known) or 'none'}"
            )
    try:
        return method(**{key: _tupled(value) for key, value in options.items()})
    except TypeError as error:
        raise ScheduleError(f"{source}: {document['schedule']}: {error}") from error


def parse(text: str, *, source: str = "schedule") -> Schedule:
    """Read a schedule from YAML; ``source`` names it in errors. Raises ScheduleError.

    >>> parse("{schedule: lisa, period: 3}")
    LISA(layers=None, period=3, seed=0)
    """
    return from_plain(parse_yaml(text, source=source, error=ScheduleError), source=source)


def to_yaml(schedule: Schedule) -> str:
    """The schedule as YAML that :func:`parse` reads back.

    >>> from frostline.schedules import LISA
    >>> print(to_yaml(LISA()), end="")
    schedule: lisa
    layers: null
    period: 5
    seed: 0
    """
    return yaml.safe_dump(to_plain(schedule), sort_keys=False)


def _method(name: object, source: str) -> type[Schedule]:
    if name not in registry:
        raise ScheduleError(
            f"{source}: there is no schedule {name!r}.{nearest(str(name), registry)}"
            f" All schedules: {', '.join(sorted(registry))}"
        )
    return registry[str(name)]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        # What a phase does not use is left out: people read and edit these.
        return {
            key: _plain(inner) for key, inner in value.items() if inner is not None and inner != {}
        }
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _tupled(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
