"""Trainable tensors before much that is frozen: they keep all of it in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

_LEAST_RUN = 4
"""Frozen tensors in a row that are worth a word."""


class Blockers(NamedTuple):
    """Early trainable tensors, and what is frozen right behind them.

    Attributes:
        blockers: names of the trainable tensors.
        behind: number of frozen tensors between them and the next trainable one.
    """

    blockers: tuple[str, ...]
    behind: int


def early_blockers(order: Sequence[tuple[str, bool]], *, share: float = 0.5) -> Blockers:
    """Find the trainable tensors that stand before the longest frozen run.

    However many they are: a trained stem (convolution and BatchNorm, three tensors) costs what one
    forgotten bias costs. Biases or adapters in every layer leave no long run and are not found.

    Args:
        order: (name, trainable) of the model's tensors, from the input to the output.
        share: the least share of all tensors that the frozen run must have.

    >>> early_blockers([("a", True), *[(f"b{i}", False) for i in range(6)], ("head", True)])
    Blockers(blockers=('a',), behind=6)
    """
    trainable = [rank for rank, (_, trains) in enumerate(order) if trains]
    gaps = [(after - before - 1, n) for n, (before, after) in enumerate(pairwise(trainable), 1)]
    run, count = max(gaps, default=(0, 0), key=lambda gap: gap[0])
    if run < max(_LEAST_RUN, share * len(order)):
        return Blockers((), 0)
    return Blockers(tuple(order[rank][0] for rank in trainable[:count]), run)
