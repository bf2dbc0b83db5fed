"""Where a run stands: steps and epochs, and how long it is, as far as that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from frostline.errors import ScheduleError

ASSUMED_STEPS_PER_EPOCH = 100
"""Steps of an epoch, until the first one has ended, where nobody says how many there are."""

ASSUMED_EPOCHS = 10
"""Epochs of a run of which nobody says how long it is."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Counters of a run; moving on gives a new one.

    Attributes:
        step: optimizer steps made.
        epoch: epochs finished.
        epoch_began: the step with which the present epoch began.
        total_given: steps of the run, if somebody said.
        per_epoch_given: steps of an epoch, if somebody said.
        per_epoch_seen: steps of the first epoch, once it has ended.

    >>> Position().after_step().after_step().after_epoch().steps_per_epoch
    2
    """

    step: int = 0
    epoch: int = 0
    epoch_began: int = 0
    total_given: int | None = None
    per_epoch_given: int | None = None
    per_epoch_seen: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch: given, seen, or assumed."""
        return self.per_epoch_given or self.per_epoch_seen or ASSUMED_STEPS_PER_EPOCH

    @property
    def total_steps(self) -> int:
        """Steps of the run: given, or assumed."""
        return self.total_given or self.steps_per_epoch * ASSUMED_EPOCHS

    @property
    def epoch_is_full(self) -> bool:
        """Whether the epoch has as many steps as were given for one."""
        return self.step - self.epoch_began == self.per_epoch_given

    def after_step(self) -> Position:
        """One step later."""
        return replace(self, step=self.step + 1)

    def after_epoch(self) -> Position:
        """The same step, with the epoch ended."""
        seen = self.per_epoch_seen or (self.step - self.epoch_began) or None
        return replace(self, epoch=self.epoch + 1, epoch_began=self.step, per_epoch_seen=seen)

    def told_of_epoch(self) -> Position:
        """The epoch has ended, says the loop; it may have ended by itself already.

        Raises:
            ScheduleError: it has another length than was given.
        """
        made = self.step - self.epoch_began
        if self.per_epoch_given is not None and made not in (0, self.per_epoch_given):
            raise ScheduleError(
                f"freezer.epoch() came {made} steps after the last epoch's end, and"
                f" steps_per_epoch={self.per_epoch_given} was given: give the optimizer steps that"
                " an epoch really has, or leave steps_per_epoch out"
            )
        ended = self.per_epoch_given is not None and made == 0 and self.epoch > 0
        return self if ended else self.after_epoch()

    def resumed(self, plain: Mapping[str, Any]) -> Position:
        """What :meth:`to_plain` gave; lengths that are given now go before those given then."""
        saved = Position(**plain)
        return replace(
            saved,
            total_given=self.total_given or saved.total_given,
            per_epoch_given=self.per_epoch_given or saved.per_epoch_given,
        )

    def to_plain(self) -> dict[str, Any]:
        """The counters as JSON holds them."""
        return asdict(self)
