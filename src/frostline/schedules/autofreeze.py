"""AutoFreeze: freeze the blocks whose accumulated gradients change least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.checks import has_blocks, number, whole

_GRADIENTS = "accumulated_gradients"


@dataclass(frozen=True, kw_only=True)
class AutoFreeze:
    """A few times an epoch, freeze the blocks below the first whose gradients still change.

    Liu et al., "AutoFreeze" (arXiv 2102.01386). ``G`` is the sum of a block's gradients since the
    last look, its absolute values added up; a block's change is ``|G_before - G| / G_before``.
    Nothing thaws again. The stem goes with the first block.

    Attributes:
        looks_per_epoch: how often an epoch the gradients are compared.
        percentile: a block whose change is below this percentile of all that train counts as
            settled, from 0 to 100.
        least_training: blocks that are left to train at least.

    >>> AutoFreeze().period(steps_per_epoch=468)
    46
    """

    looks_per_epoch: int = 10
    percentile: float = 50.0
    least_training: int = 1

    name: ClassVar[str] = "autofreeze"
    traits: ClassVar[Traits] = Traits(paced=True)

    def __post_init__(self) -> None:
        whole(self.name, "looks_per_epoch", self.looks_per_epoch)
        number(self.name, "percentile", self.percentile, least=0, most=100)
        whole(self.name, "least_training", self.least_training, least=0)

    def period(self, steps_per_epoch: int) -> int:
        """Steps from one look to the next."""
        return max(1, steps_per_epoch // self.looks_per_epoch)

    def start(self, progress: Progress) -> State:
        """No gradients yet. Raises ScheduleError for a model with too few blocks to choose from."""
        has_blocks(self.name, progress, least=self.least_training + 1)
        return {"before": None}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """The accumulated gradients, as long as there is something left to freeze."""
        left = len(progress.layout.blocks) - progress.layout.below(progress.trains)
        return frozenset({_GRADIENTS} if left > self.least_training else ())

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """Look at the gradients when it is time; else leave all as it is."""
        layout = progress.layout
        if progress.at == "start":
            return Decision(state=state, train=layout.names, why="all blocks train at first")
        due = progress.step % self.period(progress.steps_per_epoch) == 0
        if progress.at != "step" or not due or not self.needs(progress, state):
            return Decision(state=state)
        sums = signals[_GRADIENTS]
        frozen = layout.below(progress.trains)
        active = layout.blocks[frozen:]
        now = {name: float(sums.get(name, math.nan)) for name in active}
        if not all(map(math.isfinite, now.values())):
            # An overflow under mixed precision says nothing about a block: begin again.
            return Decision(state={"before": None}, restart=frozenset({_GRADIENTS}))
        before = state["before"]
        if before is None or any(name not in before for name in active):
            return Decision(state={"before": now}, restart=frozenset({_GRADIENTS}))
        changes = [relative_change(before[name], now[name]) for name in active]
        threshold = percentile(changes, self.percentile)
        settled = next(index for index, change in enumerate(changes) if change >= threshold)
        count = min(frozen + settled, len(layout.blocks) - self.least_training)
        state = {"before": now}
        if count <= frozen:
            return Decision(state=state, restart=frozenset({_GRADIENTS}))
        return Decision(
            state=state,
            train=layout.above(count),
            why=f"gradients below {layout.blocks[count]} change less than the threshold",
            numbers={
                "threshold": threshold,
                **{f"change {name}": c for name, c in zip(active, changes, strict=True)},
            },
            restart=frozenset({_GRADIENTS}),
        )


def relative_change(before: float, now: float) -> float:
    """``|before - now| / before``; from nothing to something counts as infinite."""
    if before == 0:
        return 0.0 if now == 0 else math.inf
    return abs(before - now) / before


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of the values lie, interpolated as NumPy does by default.

    >>> percentile([4.0, 1.0, 3.0, 2.0], 50)
    2.5
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    if ordered[low] == ordered[high]:  # also two infinities, of which the difference is NaN
        return ordered[low]
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
