"""A frost line as a table that a person can read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from frostline.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from frostline.replay.frost_line import FrostLine


def line_table(line: FrostLine) -> str:
    """The calls that are skipped, what is kept of them, and what is made all the same, as text.

    >>> from frostline.replay.frost_line import FrostLine, SkippedCall
    >>> call = SkippedCall(
    ...     place="body", type_name="Linear", bytes_per_sample=32, bytes_once=0, share=0.5
    ... )
    >>> print(line_table(FrostLine(
    ...     calls=(call,), refused={}, needless_inputs=("pixels",), samples=8,
    ...     forward_seconds=0.004, replayed_seconds=0.001, declined=None,
    ... )))
    skipped  class   kept a sample  of the forward
    body     Linear           32 B            50 %
    total                     32 B            50 %
    A forward pass of 8 samples takes 4 ms; replayed, 1 ms.
    Need not be loaded: pixels.
    """
    return "\n".join((*_head(line), *_foot(line)))


def _head(line: FrostLine) -> Iterator[str]:
    if line.declined is not None:
        yield f"Nothing is replayed: {line.declined}."
        return
    rows = [("skipped", "class", "kept a sample", "of the forward")]
    for call in line.calls:
        held = format_bytes(call.bytes_per_sample) if call.bytes_per_sample else "-"
        held += f" + {format_bytes(call.bytes_once)} once" if call.bytes_once else ""
        rows.append((call.place, call.type_name, held, _percent(call.share)))
    rows.append(("total", "", format_bytes(line.bytes_per_sample), _percent(line.skipped_share)))
    name, kind, kept, share = (max(map(len, column)) for column in zip(*rows, strict=True))
    for row in rows:
        cells = row[0].ljust(name), row[1].ljust(kind), row[2].rjust(kept), row[3].rjust(share)
        yield "  ".join(cells)
    assert line.replayed_seconds is not None
    yield (
        f"A forward pass of {line.samples} samples takes {format_seconds(line.forward_seconds)};"
        f" replayed, {format_seconds(line.replayed_seconds)}."
    )


def _foot(line: FrostLine) -> Iterator[str]:
    if line.needless_inputs:
        yield f"Need not be loaded: {', '.join(line.needless_inputs)}."
    if line.refused:
        yield "Frozen, and made every time:"
        yield from (f"  {place}: {why}" for place, why in line.refused.items())


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
