"""A schedule's timeline as a chart in text: blocks down, epochs across."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from frostline.finetune.result import ScheduleReport
from frostline.units import format_number_of

_SHADES = "·░▒▓█"
_PLAIN_SHADES = ".-+*#"
_NAME_WIDTH = 28


def timeline_chart(report: ScheduleReport, *, width: int, ascii_only: bool = False) -> Text:
    """The chart; epochs share a column where there are more of them than columns.

    Args:
        report: what was frozen when.
        width: columns of the terminal.
        ascii_only: for a terminal that can't show shades.

    >>> report = ScheduleReport(
    ...     name="alpha", transitions=1, places=("stem", "head"), frozen=((0, 0.5, 1), (0, 0, 0))
    ... )
    >>> print(timeline_chart(report, width=40))
    schedule alpha: 1 transition in 3 epochs
      stem  ·▒█
      head  ···
            1 3
      · trains  ░▒▓ in part  █ frozen
    """
    shades = _PLAIN_SHADES if ascii_only else _SHADES
    names = [_short(place, ascii_only=ascii_only) for place in report.places]
    margin = max(map(len, names))
    epochs = len(report.frozen[0])
    per_column = -(-epochs // max(width - margin - 4, 1))
    moved = format_number_of(report.transitions, "transition")
    lines = [f"schedule {report.name}: {moved} in {format_number_of(epochs, 'epoch')}"]
    for name, shares in zip(names, report.frozen, strict=True):
        columns = [shares[at : at + per_column] for at in range(0, epochs, per_column)]
        row = "".join(_shade(sum(part) / len(part), shades) for part in columns)
        lines.append(f"  {name:<{margin}}  {row}")
    columns_used = -(-epochs // per_column)
    gap = columns_used - 1 - len(str(epochs)) + 1
    axis = f"1{'':<{gap - 1}}{epochs}" if gap > 1 else f"{epochs}"
    lines.append(f"  {'':<{margin}}  {axis}")
    part = shades[1:-1]
    legend = f"  {shades[0]} trains  {part} in part  {shades[-1]} frozen"
    shared = f"; {per_column} epochs a column" if per_column > 1 else ""
    return Text("\n".join([*lines, legend + shared]))


def _shade(share: float, shades: Sequence[str]) -> str:
    """The outer two are kept for what trained, or was frozen, as a whole and all the time."""
    if share <= 1e-9:
        return shades[0]
    if share >= 1 - 1e-9:
        return shades[-1]
    return shades[1 + min(int(share * 3), 2)]


def _short(name: str, *, ascii_only: bool) -> str:
    """Its end is what tells one block from the next."""
    if len(name) <= _NAME_WIDTH:
        return name
    dots = "..." if ascii_only else "…"
    return dots + name[len(dots) - _NAME_WIDTH :]
