"""Which replays are also computed, to be held against the record."""

from __future__ import annotations

import random


class Audits:
    """The 1st, 8th, 64th … replay is compared, and a share of all.

    Args:
        share: from 0 to 1.

    >>> audits = Audits(0.0)
    >>> [number for number in range(1, 100) if audits.is_due(number)]
    [1, 8, 64]
    >>> [number for number in range(1, 100) if audits.is_due(number, of_earlier_run=True)]
    [1, 64]
    """

    def __init__(self, share: float) -> None:
        self._share = share
        # Of its own, so that the loop's random numbers are the same with and without replay.
        self._random = random.Random(0)

    def is_due(self, number: int, *, of_earlier_run: bool = False) -> bool:
        """Whether the replay of this number, from 1, is to be compared.

        Args:
            number: of the replay.
            of_earlier_run: whether an earlier run has proven the cut: then fewer are, the 1st,
                64th, 4096th …
        """
        step = 64 if of_earlier_run else 8
        while number % step == 0:
            number //= step
        return number == 1 or (self._share > 0 and self._random.random() < self._share)
