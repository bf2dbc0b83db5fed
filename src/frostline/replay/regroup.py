"""Whether a sample's values depend on the rest of its batch, or on its position in it.

Two recorded batches are mixed, half of each, every sample in the other half of the batch than
before. What the frozen part computes of the mixture must have the bits that were recorded, and a
replayed pass over it must give what a computed one gives. This finds batch dimensions that were
guessed wrongly, kernels that treat the last rows in another way, whatever looks across the batch,
and effects that a replay would leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from frostline.replay.catcher import Catcher
from frostline.replay.content import batch_dim
from frostline.replay.frame import Irregular, Mode, Seen, Unknown
from frostline.replay.liveness import Exclusions
from frostline.replay.nest import open_nest
from frostline.replay.plan import Plan, Station
from frostline.replay.runner import TopLevel, same_output, same_values, try_frame
from frostline.replay.store import StoreDamaged

_COARSE = 64
"""How many units in the last place of narrower kept values an output may be off, by its largest."""


class Recorded(NamedTuple):
    """A pass that was recorded.

    Attributes:
        call: the call, with copies of its arguments.
        ids: the samples.
    """

    call: TopLevel
    ids: tuple[int, ...]


def mixed(one: Recorded, other: Recorded, *, shift: int) -> Recorded | None:
    """Every other sample of each batch, moved on by ``shift`` places; None if they don't fit."""
    left = open_nest((one.call.args, one.call.kwargs)).tensors
    right = open_nest((other.call.args, other.call.kwargs)).tensors
    samples = len(one.ids)
    picks = [((p + shift) % 2, (p + shift) % samples) for p in range(samples)]
    sides = torch.tensor([side for side, _ in picks], dtype=torch.bool)
    places = torch.tensor([place for _, place in picks])
    tensors: list[Tensor] = []
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return None
        dim = batch_dim(a, samples)
        if dim is not None and a.shape[dim] == samples:
            shape = [-1 if d == dim else 1 for d in range(a.ndim)]
            at = places.to(a.device)
            from_b = sides.to(a.device).view(shape)
            a = torch.where(from_b, b.index_select(dim, at), a.index_select(dim, at))
        tensors.append(a)
    ids = tuple((one.ids, other.ids)[side][place] for side, place in picks)
    return Recorded(other.call.with_tensors(tensors), ids)


def shifts(samples: int) -> list[int]:
    """In which order places are tried: first so that each sample comes to the other half.

    Kernels treat the last rows of a batch in another way, and not every sample's bits show it:
    the more samples have been at the end, the surer.

    >>> shifts(5)
    [2, 4, 3, 1]
    """
    half = max(1, samples // 2)
    return sorted(range(1, max(2, samples)), key=lambda s: ((s - half) % 2, (s - half) % samples))


class Verdict(NamedTuple):
    """What a comparison showed.

    Attributes:
        holds: whether all was the same.
        exclusions: whether :class:`Exclusions` were added, so that a new cut may hold.
        why: what differed, if nothing can be done about it.
    """

    holds: bool
    exclusions: bool = False
    why: str | None = None


def prove(
    plan: Plan, batch: Recorded, exclusions: Exclusions, catcher: Catcher, *, with_output: bool
) -> Verdict:
    """Compute a regrouped batch for trial, and hold it against the record.

    Args:
        plan: the cut.
        batch: the regrouped batch.
        exclusions: takes what is found not to hold.
        catcher: catches the calls of planned modules.
        with_output: whether the batch is also replayed for trial, and the outputs are compared.
    """
    mode: Mode = "capture" if with_output else "prefix"
    output, computed = try_frame(plan, batch.call, batch.ids, mode, catcher)
    if computed.irregular is not None:
        return Verdict(False, why=computed.irregular)
    if compare(plan, computed.seen, exclusions):
        return Verdict(False, exclusions=True)
    if not with_output:
        return Verdict(True)
    try:
        replayed, _ = try_frame(plan, batch.call, batch.ids, "try", catcher)
    except Unknown:
        return Verdict(False, exclusions=True)  # a damaged record: once more
    except Irregular as irregular:
        return Verdict(False, why=f"a replay goes another way than computing: {irregular.why}")
    return judge_output(plan, replayed, output, exclusions)


def judge_output(plan: Plan, replayed: Any, computed: Any, exclusions: Exclusions) -> Verdict:
    """A replayed pass must give the output that computing it gives."""
    if same_output(replayed, computed, rounding=False):
        return Verdict(True)
    if exclusions.keep_as is not None and _is_near(replayed, computed, exclusions.keep_as):
        return Verdict(True)
    if same_output(replayed, computed, rounding=exclusions.accepts_rounding):
        exclusions.has_rounded = True
        return Verdict(True)
    if plan.keeps_parts:
        exclusions.keeps_whole = True
        return Verdict(False, exclusions=True)
    mutating = [s.planned.index for s in plan.stations if s.planned.mutates]
    if mutating:
        why = "it writes into what another module returned"
        exclusions.split.update(dict.fromkeys(mutating, why))
        return Verdict(False, exclusions=True)
    return Verdict(
        False,
        why="a replayed pass gave another output than a computed one, though what was kept is"
        " right: something besides modules' outputs matters, such as a value that code inside the"
        " frozen part leaves somewhere",
    )


def compare(plan: Plan, seen: Sequence[Seen], exclusions: Exclusions) -> Station | None:
    """Hold computed calls against the record; what differs is excluded from the next cut."""
    for item in seen:
        if _is_as_recorded(item, rounding=False):
            continue
        if exclusions.accepts_rounding and _is_as_recorded(item, rounding=True):
            exclusions.has_rounded = True
        else:
            # The first alone: what comes after may differ because of it.
            _exclude(plan, item.station, exclusions, is_known=_is_known(item))
            return item.station
    return None


def exclude_chosen(station: Station, exclusions: Exclusions) -> None:
    """What content has decided between the modules is another thing in each batch."""
    why = "what it is given is decided by the content of the whole batch"
    exclusions.varying.update(dict.fromkeys(station.planned.call.results, why))


def _is_near(replayed: Any, computed: Any, dtype: torch.dtype) -> bool:
    """Whether an output is what narrower kept values may make of a computed one.

    How they spread in the live part is not known, so this finds blunders alone: poison, or values
    of something else. A lone number, such as a loss close to zero, has no scale to hold it to.
    """
    left, right = open_nest(replayed).tensors, open_nest(computed).tensors
    if len(left) != len(right):
        return False
    for one, other in zip(left, right, strict=True):
        forms = [(t.shape, t.dtype, t.requires_grad) for t in (one, other)]
        if forms[0] != forms[1]:
            return False
        if not other.is_floating_point():
            continue  # a choice between classes may fall otherwise
        if not torch.equal(one.isnan(), other.isnan()):
            return False
        if other.numel() > 1:
            largest, amount = (t.detach().abs().nan_to_num().max() for t in (other, one - other))
            if amount > _COARSE * torch.finfo(dtype).eps * largest:
                return False
    return True


def are_recorded(seen: Sequence[Seen]) -> bool:
    """Whether all that was computed is on the shelves, for all samples."""
    return all(_is_known(item) and _is_whole_known(item) for item in seen)


def _is_whole_known(item: Seen) -> bool:
    constants = item.station.constants
    return constants is None or constants.find([item.path])[0] >= 0


def _is_known(item: Seen) -> bool:
    shelf = item.station.shelf
    return shelf is None or min(shelf.find(item.digests)) >= 0


def _is_as_recorded(item: Seen, *, rounding: bool) -> bool:
    try:
        kept = item.station.recorded(item.digests, item.path)
    except StoreDamaged:
        return True  # nothing to compare with; it is forgotten and will be computed
    return kept is not None and all(
        same_values(
            tensor,
            item.station.layouts[position].as_kept(item.tensors[position]),
            rounding=rounding,
        )
        for position, tensor in kept.items()
    )


def _exclude(plan: Plan, station: Station, exclusions: Exclusions, *, is_known: bool) -> None:
    planned, graph = station.planned, plan.graph
    if not is_known:
        # Other content came in than when the samples were recorded: it varies with the batch.
        inputs = [
            value
            for value, source in zip(planned.call.arguments, planned.sources, strict=True)
            if source.kind == "content" and value not in graph.inputs
        ]
        if inputs:
            why = "what it is given depends on the rest of the batch"
            exclusions.varying.update(dict.fromkeys(inputs, why))
            return
    tried = exclusions.layouts.get(planned.index, 0)
    if tried + 1 < station.ways_to_cut:
        exclusions.layouts[planned.index] = tried + 1
        return
    why = "its values depend on the rest of the batch, or on the place in it"
    if graph.calls[planned.index].end - planned.index > 1:
        exclusions.split[planned.index] = why
    else:
        exclusions.varying.update(dict.fromkeys(planned.call.results, why))
