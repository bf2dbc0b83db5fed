"""When a store takes nothing more, and how it says so."""

from __future__ import annotations

import warnings

from frostline.errors import ReplayError
from frostline.units import format_bytes


class ReplayWarning(UserWarning):
    """Replay goes on, but with less than was asked for: a store that is full or can't be written.

    >>> issubclass(ReplayWarning, UserWarning)
    True
    """


class StoreDamaged(ReplayError):
    """A stored record is not what was once written; it has been forgotten.

    Whoever reads a store computes the value instead; nothing wrong was handed out.

    >>> issubclass(StoreDamaged, ReplayError)
    True
    """


class Limit:
    """Lets a store grow up to a budget, or until writing fails; the end is said once.

    Attributes:
        budget: the most bytes that the store may hold, or None.
        reached: why nothing more is taken, or None.

    >>> import warnings
    >>> limit = Limit(100)
    >>> limit.admits(used=60, more=40), limit.reached
    (True, None)
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     limit.admits(used=60, more=41)
    False
    >>> limit.reached
    'the budget of 100 B is used up'
    """

    def __init__(self, budget: int | None) -> None:
        if budget is not None and budget < 0:
            raise ReplayError(f"a store's budget is a number of bytes from 0 on, not {budget!r}")
        self.budget = budget
        self.reached: str | None = None

    def admits(self, *, used: int, more: int) -> bool:
        """Whether ``more`` bytes fit beside ``used``; the first time they do not is the last."""
        if self.reached is None and self.budget is not None and used + more > self.budget:
            self.reach(f"the budget of {format_bytes(self.budget)} is used up")
        return self.reached is None

    def close(self) -> None:
        """Nothing more is taken, as was asked for: there is nothing to warn of."""
        self.reached = self.reached or "the store is closed"

    def reach(self, reason: str) -> None:
        """Nothing more is taken from now on. Only the first reason counts, and warns."""
        if self.reached is not None:
            return
        self.reached = reason
        warnings.warn(
            ReplayWarning(
                f"nothing more is recorded: {reason}; what is recorded is replayed, the rest is"
                " computed in every epoch"
            ),
            stacklevel=2,
        )
