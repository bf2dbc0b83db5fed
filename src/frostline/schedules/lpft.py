"""Linear probing, then fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.checks import has_blocks, number, one_of, whole
from frostline.schedules.stall import Better, Waiting, wait


@dataclass(frozen=True, kw_only=True)
class LPFT:
    """First the head alone, then everything at a lower rate.

    Kumar et al., "Fine-Tuning can Distort Pretrained Features" (arXiv 2202.10054). The first
    phase ends when the validation metric has not got better for ``patience`` epochs, and at the
    latest after ``probe_share`` of the steps: so also if no metric ever comes.

    Attributes:
        probe_share: the longest that the first phase may take, as a share of all steps.
        patience: epochs without a better metric that end it sooner.
        better: whether a higher (``max``) or a lower (``min``) metric is better.
        lower: factor on the learning rate in the second phase.

    >>> LPFT(patience=0)
    Traceback (most recent call last):
    frostline.errors.ScheduleError: lpft: patience must be a whole number of at least 1, got 0
    """

    probe_share: float = 0.5
    patience: int = 2
    better: Better = "max"
    lower: float = 0.1

    name: ClassVar[str] = "lpft"
    traits: ClassVar[Traits] = Traits(scales_rates=True, paced=True)

    def __post_init__(self) -> None:
        number(self.name, "probe_share", self.probe_share, above=0, most=1)
        whole(self.name, "patience", self.patience)
        one_of(self.name, "better", self.better, ("max", "min"))
        number(self.name, "lower", self.lower, above=0)

    def start(self, progress: Progress) -> State:
        """The first phase. Raises ScheduleError for a model without a body below the head."""
        has_blocks(self.name, progress)
        return {"probing": True, "best": None, "waited": 0}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """The validation metric, while the head trains alone."""
        return frozenset({"metric"} if state["probing"] else ())

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """The head alone, or everything at ``lower`` times the rate; no way back."""
        everything = progress.layout.names
        if not state["probing"]:
            return Decision(state=state)
        waiting = Waiting(state["best"], state["waited"])
        if progress.metric is not None:
            waiting = wait(waiting, progress.metric, self.better)
        stalled = waiting.epochs >= self.patience
        if not stalled and progress.step < self.probe_share * progress.total_steps:
            return Decision(
                state={"probing": True, "best": waiting.best, "waited": waiting.epochs},
                train=frozenset(progress.layout.head),
                rates={},
                why="first phase: the head alone",
            )
        reason = (
            f"the metric has not got better for {waiting.epochs} epochs"
            if stalled
            else f"{self.probe_share:.0%} of the steps are made"
        )
        return Decision(
            state={"probing": False, "best": waiting.best, "waited": waiting.epochs},
            train=everything,
            rates=dict.fromkeys(everything, self.lower),
            why=f"second phase: everything, since {reason}",
            numbers={} if waiting.best is None else {"best metric": waiting.best},
        )
