"""Whether what an earlier cut has kept is enough for another pass, where it kept parts."""

from __future__ import annotations

from frostline.replay.catcher import Catcher
from frostline.replay.frame import Frame
from frostline.replay.graph import Graph
from frostline.replay.parts import partial_reads
from frostline.replay.plan import Plan
from frostline.replay.runner import TopLevel, try_frame
from frostline.replay.windows import Box, box_of


def has_all_reads(plan: Plan, graph: Graph) -> bool:
    """Whether the parts that a cut keeps hold all that a pass reads of the same calls.

    Args:
        plan: the cut.
        graph: the pass, traced.
    """
    if not plan.keeps_parts:
        return True
    at = {call.place: index for index, call in enumerate(graph.calls)}
    starts = [at.get(station.planned.call.place) for station in plan.stations]
    spans = [range(start, graph.calls[start].end) for start in starts if start is not None]
    if len(spans) < len(starts):
        return False
    reads = partial_reads(graph, {index for span in spans for index in span}, graph.constant)
    for station, span in zip(plan.stations, spans, strict=True):
        call = graph.calls[span.start]
        if len(call.results) != len(station.layouts):
            return False
        for value, window, layout in zip(call.results, call.windows, station.layouts, strict=True):
            read = box_of(reads.get(value, ()), window)
            if layout.part is not None and not _holds(layout.part, read):
                return False
    return True


def read_too_little(
    earlier: Plan | None,
    plan: Plan,
    call: TopLevel,
    ids: tuple[int, ...],
    frame: Frame,
    catcher: Catcher,
) -> bool:
    """Whether a pass that was recorded from an earlier cut's parts read what these do not hold.

    Frozen modules give NaN by themselves, too. So what is to be kept is computed once more, for
    trial, from the inputs.

    Args:
        earlier: that cut, if there was any.
        plan: the cut that was recorded.
        call: the call.
        ids: the samples.
        frame: what was recorded; nothing is kept of it yet.
        catcher: catches the calls of planned modules.
    """
    if earlier is None or not earlier.keeps_parts or not frame.keeps_nan():
        return False
    _, computed = try_frame(plan, call, ids, "prefix", catcher)
    return not computed.keeps_nan()


def _holds(part: Box, read: Box | None) -> bool:
    return read is not None and all(
        first <= begin and end <= last
        for (first, last), (begin, end) in zip(part, read, strict=True)
    )
