"""ULMFiT's gradual unfreezing, with its discriminative and slanted triangular rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.checks import has_blocks, number, whole
from frostline.units import format_number_of


@dataclass(frozen=True, kw_only=True)
class GradualUnfreeze:
    """Begin with the head; thaw one more group, from the top down, each epoch.

    Howard and Ruder, "Universal Language Model Fine-tuning" (arXiv 1801.06146).

    Attributes:
        epochs_per_group: epochs until the next group joins.
        decay: a group's learning rate is that of the group above it, divided by this; 1 for none.
        slanted: whether the rate follows the slanted triangle. It replaces a scheduler: let the
            one that you have stay constant, or switch this off.
        cut: share of the steps in which the triangle rises.
        ratio: how many times smaller the lowest rate is than the highest.

    >>> [GradualUnfreeze().groups_training(epoch, 4) for epoch in range(5)]
    [1, 2, 3, 4, 4]
    """

    epochs_per_group: int = 1
    decay: float = 2.6
    slanted: bool = True
    cut: float = 0.1
    ratio: float = 32.0

    name: ClassVar[str] = "gradual-unfreeze"
    traits: ClassVar[Traits] = Traits(scales_rates=True, paced=True)

    def __post_init__(self) -> None:
        whole(self.name, "epochs_per_group", self.epochs_per_group)
        number(self.name, "decay", self.decay, least=1)
        number(self.name, "cut", self.cut, above=0, most=1)
        number(self.name, "ratio", self.ratio, least=1)

    def groups_training(self, epoch: int, groups: int) -> int:
        """How many of the groups, from the top, train in an epoch (from 0)."""
        return min(groups, 1 + epoch // self.epochs_per_group)

    def start(self, progress: Progress) -> State:
        """Nothing to remember. Raises ScheduleError for a model with a single group."""
        has_blocks(self.name, progress)
        return {}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """Nothing but the time."""
        return frozenset()

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """The top groups train, each at the rate of the one above it divided by ``decay``."""
        from_the_top = [unit.name for unit in reversed(progress.layout.units)]
        count = self.groups_training(progress.epoch, len(from_the_top))
        height = slanted_triangle(
            progress.step, progress.total_steps, cut=self.cut, ratio=self.ratio
        )
        return Decision(
            state=state,
            train=frozenset(from_the_top[:count]),
            rates={
                name: (height if self.slanted else 1.0) / self.decay**depth
                for depth, name in enumerate(from_the_top[:count])
            },
            why=f"epoch {progress.epoch}: {format_number_of(count, 'group')} from the top"
            f" of {len(from_the_top)}",
            numbers={"groups": count},
        )


def slanted_triangle(step: int, steps: int, *, cut: float = 0.1, ratio: float = 32.0) -> float:
    """The share of the highest rate at ``step`` (from 0) of ``steps``: a short rise, a long fall.

    >>> [round(slanted_triangle(step, 100) * 32, 2) for step in (0, 5, 10, 55, 100)]
    [1.0, 16.5, 32.0, 16.5, 1.0]
    """
    peak = max(1, int(steps * cut))
    fall = max(1.0, peak * (1 / cut - 1))
    share = step / peak if step < peak else max(0.0, 1 - (step - peak) / fall)
    return (1 + share * (ratio - 1)) / ratio
