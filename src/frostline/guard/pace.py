"""How much checking the loop can afford."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from frostline.guard.watched import Watched

# What a comparison costs beside reading, in seconds: a few Python calls.
_OVERHEAD_SECONDS = 4e-6


class Pace:
    """Saves up a share of the loop's time, and spends it on one tensor after another.

    Tensors take turns, so that over the steps all of them are compared equally often. A tensor
    that costs more than a step's share waits until enough is saved.

    Attributes:
        share: the share of the loop's time that may go into comparing content.

    >>> pace = Pace(share=0.01)
    >>> pace.earn(10.0, ceiling=0.05)
    >>> pace.saved
    0.05
    """

    def __init__(self, *, share: float) -> None:
        self.share = share
        self.saved = 0.0
        self._seconds_per_byte = 1e-10  # 10 GB/s, until measured
        self._turn = 0

    def earn(self, seconds: float, *, ceiling: float) -> None:
        """Save the share of ``seconds``, up to a ceiling: a long pause buys no long check."""
        self.saved = min(self.saved + self.share * seconds, ceiling)

    def spend(self, seconds: float, *, at_most: float) -> None:
        """Pay for checks that were made; a debt beyond ``at_most`` is remitted."""
        self.saved = max(self.saved - seconds, -at_most)

    def learn(self, nbytes: int, tensors: int, seconds: float) -> None:
        """Measure what reading costs on this machine, from a check that was made."""
        if nbytes >= 1 << 16:
            rate = max(seconds - tensors * _OVERHEAD_SECONDS, 0.0) / nbytes
            self._seconds_per_byte += 0.3 * (rate - self._seconds_per_byte)

    def cost(self, nbytes: int, tensors: int) -> float:
        """Seconds that comparing these will take."""
        return tensors * _OVERHEAD_SECONDS + nbytes * self._seconds_per_byte

    def affordable(self, watched: Sequence[Watched]) -> Iterator[Watched]:
        """The next tensors in turn that can be paid for, each once."""
        left = self.saved
        for _ in watched:
            entry = watched[self._turn % len(watched)]
            left -= self.cost(entry.nbytes, 1)
            if left < 0:
                return
            self._turn += 1
            yield entry
