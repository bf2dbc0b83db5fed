"""AutoRGN: rates in proportion to gradient over weight norm, and none where there is little."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.checks import has_blocks, number, whole
from frostline.units import format_number_of

_RATIOS = "relative_gradients"


@dataclass(frozen=True, kw_only=True)
class AutoRGN:
    """Give every tensor the rate lr × r / max r, with ``r`` = ‖gradient‖ / ‖weight‖.

    Lee et al., "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts"
    (arXiv 2210.11466). Tensors whose factor would be next to nothing are frozen for good, which
    the authors do not; and the steps in which r is measured train.

    Attributes:
        batches: steps over which r is averaged.
        freeze_below: factor below which a tensor is frozen; 0 freezes nothing.
        every_epochs: measure again after so many epochs, with everything thawed; None: never.

    >>> AutoRGN(batches=0)
    Traceback (most recent call last):
    frostline.errors.ScheduleError: autorgn: batches must be a whole number of at least 1, got 0
    """

    batches: int = 5
    freeze_below: float = 0.01
    every_epochs: int | None = 1

    name: ClassVar[str] = "autorgn"
    traits: ClassVar[Traits] = Traits(grain="tensor", moments="keep", scales_rates=True)

    def __post_init__(self) -> None:
        whole(self.name, "batches", self.batches)
        number(self.name, "freeze_below", self.freeze_below, least=0, most=1)
        if self.every_epochs is not None:
            whole(self.name, "every_epochs", self.every_epochs)

    def start(self, progress: Progress) -> State:
        """Nothing measured yet."""
        has_blocks(self.name, progress, least=0)
        return {"measured": 0, "sums": {}, "epoch": 0}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """Gradient over weight norms, while they are measured."""
        return frozenset({_RATIOS} if state["measured"] < self.batches else ())

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """Measure; then set the rates, and freeze what would hardly move."""
        if progress.at == "start":
            return Decision(
                state=state, train=progress.layout.names, why="all tensors train while measured"
            )
        if progress.at == "epoch":
            return self._renew(progress, state)
        if state["measured"] >= self.batches:
            return Decision(state=state)
        ratios = signals[_RATIOS]
        sums: dict[str, float] = dict(state["sums"])
        for name, ratio in ratios.items():
            if math.isfinite(ratio):  # an overflow under mixed precision says nothing
                sums[name] = sums.get(name, 0.0) + ratio
        measured = {**state, "measured": int(state["measured"]) + 1, "sums": sums}
        if measured["measured"] < self.batches:
            return Decision(state=measured)
        return self._judge(progress, measured)

    def _renew(self, progress: Progress, state: State) -> Decision:
        due = self.every_epochs is not None and progress.epoch % self.every_epochs == 0
        if not due or progress.epoch == state["epoch"]:
            return Decision(state=state)
        return Decision(
            state={"measured": 0, "sums": {}, "epoch": progress.epoch},
            train=progress.layout.names,
            why=f"epoch {progress.epoch}: everything is measured again",
        )

    def _judge(self, progress: Progress, state: dict[str, Any]) -> Decision:
        sums: dict[str, float] = state["sums"]
        most = max(sums.values(), default=0.0)
        if most <= 0:  # no gradient came that says anything: train on as it is
            return Decision(state=state)
        # A weight of zeros (a fresh bias) has no ratio: it has everything to learn.
        factors = {name: sums.get(name, most) / most for name in progress.layout.names}
        train = {name for name, factor in factors.items() if factor >= self.freeze_below}
        frozen = len(factors) - len(train)
        return Decision(
            state=state,
            train=frozenset(train),
            rates={name: factors[name] for name in sorted(train)},
            why=f"{format_number_of(frozen, 'tensor')} of {len(factors)} have a ratio below"
            f" {self.freeze_below:g} of the greatest",
            numbers={"greatest ratio": most / self.batches},
        )
