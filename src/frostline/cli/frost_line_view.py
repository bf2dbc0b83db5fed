"""What ``frostline inspect`` shows of a frost line: cells of the tree, sentences, JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from frostline.units import format_bytes, format_names, format_seconds

if TYPE_CHECKING:
    from frostline.cli.tree_table import Replay
    from frostline.replay.frost_line import FrostLine


def replay_cells(line: FrostLine) -> dict[str, Replay]:
    """Module name → what replay does with its calls: they are skipped, or kept as well.

    >>> from frostline.replay.frost_line import FrostLine, SkippedCall
    >>> call = SkippedCall(
    ...     place="body", type_name="Linear", bytes_per_sample=32, bytes_once=0, share=0.5
    ... )
    >>> replay_cells(FrostLine(
    ...     calls=(call,), refused={}, needless_inputs=(), samples=8, forward_seconds=0.004,
    ...     replayed_seconds=0.001, declined=None,
    ... ))
    {'body': 'kept'}
    """
    kept = line.kept
    return {call.place: "kept" if call.place in kept else "skipped" for call in line.calls}


def line_summary(line: FrostLine) -> Iterator[str]:
    """What replay would do, in sentences."""
    if line.declined is not None:
        yield f"Frost line: none, nothing is replayed: {line.declined}."
    else:
        yield (
            f"Frost line: {format_bytes(line.bytes_per_sample)} a sample are kept, of"
            f" {format_names(tuple(line.kept))}. Replay leaves out {100 * line.skipped_share:.0f} %"
            f" of a forward pass, which takes {format_seconds(line.forward_seconds)} plainly and"
            f" {_seconds(line)} replayed, for {line.samples} samples here."
        )
    for place, why in line.refused.items():
        yield f"Frozen, and made every time: {place}, as {why}."


def plain_line(line: FrostLine) -> dict[str, object]:
    """The same as plain values for JSON."""
    return {
        "skipped": list(line.skipped),
        "kept": dict(line.kept),
        "refused": dict(line.refused),
        "needless_inputs": list(line.needless_inputs),
        "bytes_per_sample": line.bytes_per_sample,
        "bytes_once": line.bytes_once,
        "skipped_share": line.skipped_share,
        "samples": line.samples,
        "forward_seconds": line.forward_seconds,
        "replayed_seconds": line.replayed_seconds,
        "declined": line.declined,
    }


def _seconds(line: FrostLine) -> str:
    return "-" if line.replayed_seconds is None else format_seconds(line.replayed_seconds)
