"""Surgical fine-tuning: one chosen block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from frostline.errors import ScheduleError
from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.checks import has_blocks


@dataclass(frozen=True, kw_only=True)
class SurgicalBlock:
    """The chosen blocks train, from the first step to the last, and nothing else but the head.

    Lee et al., "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts"
    (arXiv 2210.11466).

    Attributes:
        blocks: numbers of the blocks from the input up, from 0; negative ones count from the top.
        head: whether the head trains too, as it must where the classes are new.
        stem: whether the stem does.

    >>> SurgicalBlock(blocks=())
    Traceback (most recent call last):
    frostline.errors.ScheduleError: surgical: name at least one block, such as blocks=(0,)
    """

    blocks: tuple[int, ...] = (0,)
    head: bool = True
    stem: bool = False

    name: ClassVar[str] = "surgical"
    traits: ClassVar[Traits] = Traits()

    def __post_init__(self) -> None:
        given = tuple(self.blocks)
        object.__setattr__(self, "blocks", given)
        if not given:
            raise ScheduleError("surgical: name at least one block, such as blocks=(0,)")
        if any(not isinstance(number, int) or isinstance(number, bool) for number in given):
            raise ScheduleError(f"surgical: blocks are whole numbers, got {given!r}")

    def start(self, progress: Progress) -> State:
        """Nothing to remember. Raises ScheduleError for a model with too few blocks."""
        has_blocks(self.name, progress)
        count = len(progress.layout.blocks)
        for number in self.blocks:
            if not -count <= number < count:
                raise ScheduleError(
                    f"surgical: there is no block {number}: the model has {count}, numbered from"
                    f" 0 to {count - 1}"
                )
        return {}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """The same at all times."""
        layout = progress.layout
        chosen = [layout.blocks[number] for number in self.blocks]
        train = frozenset(chosen)
        if self.head:
            train |= frozenset(layout.of_role("head"))
        if self.stem:
            train |= frozenset(layout.of_role("stem"))
        return Decision(state=state, train=train, why=f"chosen: {', '.join(chosen)}")
