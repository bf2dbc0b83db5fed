"""The pass that was traced, made for real without computing its frozen part a second time.

A trace is a trial: the loop still has to be given its output, and what is kept is still to be
recorded, or to be held against what an earlier run has recorded. Both can be had from the values
that were traced.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from torch import Tensor, nn

from frostline.proof.traceless import Snapshot
from frostline.replay.captured import Captured
from frostline.replay.catcher import Catcher
from frostline.replay.frame import Frame
from frostline.replay.graph import Place
from frostline.replay.nest import open_nest
from frostline.replay.plan import Plan, Station
from frostline.replay.runner import TopLevel, same_output, start_digests
from frostline.replay.stand_in import Forward


def first_pass(
    plan: Plan, call: TopLevel, ids: tuple[int, ...], catcher: Catcher, captured: Captured
) -> tuple[Any, Frame] | None:
    """Make a traced call for real: planned calls give what they gave in the trace.

    Args:
        plan: the cut.
        call: the call that was traced.
        ids: the samples.
        catcher: catches the calls of planned modules.
        captured: what was traced.

    Returns:
        What the call returns, and a frame that has seen all that is kept, as if it had recorded;
        None if it can't be done, or gave another output than the trace did. The model and all
        random generators are then as they were.
    """
    outputs: dict[int, list[Tensor]] = {}
    for station in plan.stations:
        if not station.planned.is_kept:
            continue
        tensors = captured.tensors(station.planned.index)
        if tensors is None or station.planned.mutates:
            return None
        outputs[station.order] = tensors
    if plan.cut.hides:
        return None
    before = Snapshot(call.model, parameters=plan.graph.writes_model)
    frame = Frame(plan, start_digests(plan, call, ids), "record", inputs=call.given.tensors)
    supply = _Supply(plan, frame, outputs)
    catcher.cover(plan.names)
    catcher.direct(supply)
    try:
        output = supply.call(call.name, call.module, call.forward, call.args, call.kwargs)
        frame.finish(output)
        holds = frame.irregular is None and same_output(output, captured.output, rounding=False)
    except Exception:
        holds = False  # what stands in for a call is not what the code takes it for
    finally:
        catcher.direct(None)
        for station in plan.stations:
            station.seconds = 0.0  # it took no time here
    if not holds:
        before.restore()
        return None
    return output, frame


class _Supply:
    """Has a frame make the calls, the planned ones by giving what they gave in the trace."""

    def __init__(self, plan: Plan, frame: Frame, outputs: dict[int, list[Tensor]]) -> None:
        self._plan = plan
        self._frame = frame
        self._outputs = outputs
        self._turns: Counter[str] = Counter()

    def call(self, name: str, module: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Make one call."""
        if name in self._plan.names:
            place = Place(name, self._turns[name])
            self._turns[name] += 1
            station = self._plan.station(place)
            if station is not None:
                forward = partial(self._given, station)
        return self._frame.call(name, module, forward, args, kwargs)

    def _given(self, station: Station, /, *args: Any, **kwargs: Any) -> Any:
        tensors = self._outputs.get(station.order, [])
        kept = {p: tensors[p] for p, is_kept in enumerate(station.planned.kept) if is_kept}
        return station.returned(kept, open_nest((args, kwargs)).tensors)


def take_times(plan: Plan) -> None:
    """Where nothing is going to be recorded, times are those of the trace."""
    plan.seconds = plan.graph.seconds
    for station in plan.stations:
        station.seconds = station.planned.call.seconds
