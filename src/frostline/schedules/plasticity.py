"""Egeria-style: freeze the front block when its outputs have stopped changing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.checks import has_blocks, number, whole

_SIMILARITY = "similarity"


@dataclass(frozen=True, kw_only=True)
class Plasticity:
    """Compare the front block with a snapshot of itself; freeze it when the gap stops growing.

    After Wang et al., "Egeria" (arXiv 2201.06227), whose code we have not followed line by line.
    Every ``period`` steps the plasticity of the lowest block that trains is taken: how far the
    similarities that it sees between the samples of a batch are from those that its snapshot
    sees. It is averaged over ``window`` looks. When the average moves by less than ``tolerance``
    of the most that it ever moved, ``patience`` looks in a row, the block freezes, and the stem
    with the first. When the learning rate has dropped tenfold everything thaws.

    Attributes:
        period: steps from one look to the next.
        window: looks that are averaged.
        tolerance: share of the greatest movement that counts as standing still.
        patience: looks in a row that must stand still.
        renew: looks after which the snapshot is taken anew.
        least_training: blocks that are left to train at least.

    >>> Plasticity(period=0)
    Traceback (most recent call last):
    frostline.errors.ScheduleError: plasticity: period must be a whole number of at least 1, got 0
    """

    period: int = 5
    window: int = 3
    tolerance: float = 0.2
    patience: int = 3
    renew: int = 50
    least_training: int = 1

    name: ClassVar[str] = "plasticity"
    traits: ClassVar[Traits] = Traits()

    def __post_init__(self) -> None:
        for option in ("period", "window", "patience", "renew"):
            whole(self.name, option, getattr(self, option))
        number(self.name, "tolerance", self.tolerance, above=0, most=1)
        whole(self.name, "least_training", self.least_training, least=0)

    def start(self, progress: Progress) -> State:
        """Nothing seen yet. Raises ScheduleError for a model with too few blocks to choose from."""
        has_blocks(self.name, progress, least=self.least_training + 1)
        return _unseen(progress.rate)

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """The front block's similarity, in the steps in which it is looked at."""
        due = (progress.step + 1) % self.period == 0
        return frozenset({_SIMILARITY} if due and self._left(progress) > 0 else ())

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """Look when it is time; freeze the front block, thaw everything, or leave it as it is."""
        layout = progress.layout
        if progress.at == "start":
            return Decision(state=state, train=layout.names, why="all blocks train at first")
        frozen = layout.below(progress.trains)
        highest = max(float(state["rate"]), progress.rate)  # a warm-up raises it first
        state = {**state, "rate": highest}
        if progress.rate <= highest / 10:
            return Decision(
                state=_unseen(progress.rate),
                train=layout.names if frozen else None,
                why="the learning rate has dropped tenfold: everything thaws",
                numbers={"rate": progress.rate},
                restart=frozenset({_SIMILARITY}),
            )
        due = progress.step % self.period == 0
        if progress.at != "step" or not due or self._left(progress) <= 0:
            return Decision(state=state)
        front = layout.blocks[frozen]
        seen = float(signals[_SIMILARITY].get(front, math.nan))
        if not math.isfinite(seen):  # no forward was seen, or it overflowed: this look says nothing
            return Decision(state=state)
        return self._judge(progress, state, front, seen)

    def _judge(self, progress: Progress, state: State, front: str, seen: float) -> Decision:
        looks = [*state["looks"], seen][-(self.window + 1) :]
        count = int(state["count"]) + 1
        after = {**state, "looks": looks, "count": count}
        if len(looks) > self.window:
            slope = abs(looks[-1] - looks[0]) / self.window  # of the moving average
            after["peak"] = peak = max(float(state["peak"]), slope)
            after["calm"] = int(state["calm"]) + 1 if slope <= self.tolerance * peak else 0
            if after["calm"] >= self.patience:
                return Decision(
                    state=_unseen(float(state["rate"])),
                    train=progress.layout.above(progress.layout.below(progress.trains) + 1),
                    why=f"the plasticity of {front} stands still",
                    numbers={"plasticity": seen, "slope": slope, "greatest slope": peak},
                    restart=frozenset({_SIMILARITY}),
                )
        if count >= self.renew:
            after |= {"looks": [], "count": 0}
            return Decision(state=after, restart=frozenset({_SIMILARITY}))
        return Decision(state=after)

    def _left(self, progress: Progress) -> int:
        """Blocks that may still be frozen."""
        layout = progress.layout
        most = min(len(layout.blocks) - self.least_training, len(layout.body))
        return most - layout.below(progress.trains)


def _unseen(rate: float) -> dict[str, Any]:
    return {"looks": [], "count": 0, "peak": 0.0, "calm": 0, "rate": rate}
