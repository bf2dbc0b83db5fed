"""Has a metric stopped getting better?"""

from __future__ import annotations

from typing import Literal, NamedTuple

Better = Literal["max", "min"]
"""Whether a higher metric is better (accuracy) or a lower one (loss)."""


class Waiting(NamedTuple):
    """How long a metric has not got better.

    Attributes:
        best: the best value so far; None before the first.
        epochs: metrics that came since and were no better.
    """

    best: float | None = None
    epochs: int = 0


def wait(waiting: Waiting, metric: float, better: Better) -> Waiting:
    """Take one more metric into account.

    >>> wait(Waiting(0.9, 1), 0.8, "max"), wait(Waiting(0.9, 1), 0.8, "min")
    (Waiting(best=0.9, epochs=2), Waiting(best=0.8, epochs=0))
    """
    if waiting.best is None:
        return Waiting(metric)
    improved = metric > waiting.best if better == "max" else metric < waiting.best
    return Waiting(metric) if improved else Waiting(waiting.best, waiting.epochs + 1)
