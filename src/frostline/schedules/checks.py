"""What options and models a schedule accepts: one sentence for each refusal."""

from __future__ import annotations

import math

from frostline.errors import ScheduleError
from frostline.schedules.base import Progress
from frostline.units import format_number_of


def whole(schedule: str, option: str, value: object, *, least: int = 1) -> None:
    """Raise ScheduleError unless ``value`` is a whole number of at least ``least``.

    >>> whole("lisa", "period", 0)
    Traceback (most recent call last):
    frostline.errors.ScheduleError: lisa: period must be a whole number of at least 1, got 0
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ScheduleError(
            f"{schedule}: {option} must be a whole number of at least {least}, got {value!r}"
        )


def number(
    schedule: str,
    option: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Raise ScheduleError unless ``value`` is a finite number in the range.

    >>> number("alpha", "alpha", 2.0, above=0, most=1)
    Traceback (most recent call last):
    frostline.errors.ScheduleError: alpha: alpha must be a number above 0, at most 1, got 2.0
    """
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not (above < value and least <= value <= most):  # type: ignore[operator]
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("above", above), ("at least", least), ("at most", most))
            if math.isfinite(bound)
        ]
        raise ScheduleError(
            f"{schedule}: {option} must be a number {', '.join(bounds)}".rstrip()
            + f", got {value!r}"
        )


def one_of(schedule: str, option: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ScheduleError unless ``value`` is one of the choices."""
    if value not in choices:
        raise ScheduleError(f"{schedule}: {option} is one of {', '.join(choices)}, got {value!r}")


def has_blocks(schedule: str, progress: Progress, *, least: int = 1) -> None:
    """Raise ScheduleError unless the model has so many blocks, and something above the first."""
    blocks, body = len(progress.layout.blocks), len(progress.layout.body)
    if blocks < least or not body:
        raise ScheduleError(
            f"{schedule} needs at least {format_number_of(least, 'block')} below what always"
            f" trains, and the model has {format_number_of(blocks, 'block')} in all"
            f" ({', '.join(progress.layout.blocks[:4]) or 'none'}). Name smaller blocks"
            " (blocks=[…]), or take another schedule"
        )
