"""PipeTransformer's freezing: a fixed share of what still trains, each epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.checks import has_blocks, number
from frostline.units import format_number_of


@dataclass(frozen=True, kw_only=True)
class Alpha:
    """After each epoch freeze the share ``alpha`` of the blocks that still train, from the input.

    He et al., "PipeTransformer" (ICML 2021). The stem goes with the first block.

    Attributes:
        alpha: the share, above 0 and below 1.
        gradient_gate: never freeze past the block with the smallest gradient norm, as the paper
            has it and its code has not.

    >>> Alpha().frozen_blocks(12, epochs=7)
    [0, 4, 7, 9, 10, 11, 11, 12]
    """

    alpha: float = 1 / 3
    gradient_gate: bool = False

    name: ClassVar[str] = "alpha"
    traits: ClassVar[Traits] = Traits()

    def __post_init__(self) -> None:
        number(self.name, "alpha", self.alpha, above=0, most=1)

    def frozen_blocks(self, blocks: int, *, epochs: int) -> list[int]:
        """How many blocks are frozen in each epoch, without the gate; the first has none."""
        frozen, counts = 0.0, [0]
        for _ in range(epochs):
            frozen = self._next(frozen, blocks)
            counts.append(_rounded_up(frozen))
        return counts

    def start(self, progress: Progress) -> State:
        """Nothing is frozen yet. Raises ScheduleError for a model without blocks to freeze."""
        has_blocks(self.name, progress)
        return {"frozen": 0.0, "epoch": progress.epoch}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """The blocks' gradient norms, if they are to gate."""
        return frozenset({"gradient_norms"} if self.gradient_gate else ())

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """All blocks train but the first so and so many."""
        frozen = float(state["frozen"])
        for _ in range(int(state["epoch"]), progress.epoch):
            frozen = self._next(frozen, len(progress.layout.blocks))
            if self.gradient_gate:
                frozen = min(frozen, _least_moved(progress, signals["gradient_norms"]))
        count = _rounded_up(frozen)
        return Decision(
            state={"frozen": frozen, "epoch": progress.epoch},
            train=progress.layout.above(count),
            why=f"epoch {progress.epoch}: {format_number_of(count, 'block')} of"
            f" {len(progress.layout.blocks)} frozen",
            numbers={"frozen blocks": frozen},
        )

    def _next(self, frozen: float, blocks: int) -> float:
        return frozen + self.alpha * (blocks - frozen)


def _rounded_up(frozen: float) -> int:
    """Up, as the authors do; but not by an error in the last digit (12 x 1/3 is 4, never 5)."""
    return math.ceil(round(frozen, 9))


def _least_moved(progress: Progress, norms: Signals | object) -> int:
    """How many blocks lie below the one with the smallest gradient norm, of those that train."""
    assert isinstance(norms, dict)
    blocks = progress.layout.blocks
    training = [
        index for index, name in enumerate(blocks) if math.isfinite(norms.get(name, math.nan))
    ]
    return min(training, key=lambda index: norms[blocks[index]], default=len(blocks))
