"""Random choices that depend on a seed and a place in the run, and on nothing else."""

from __future__ import annotations

import random


def drawing(seed: int, *place: int) -> random.Random:
    """A source of random choices of its own for every place in a run.

    Nothing is remembered between places, so a resumed run draws what the other one drew, and the
    global generators are neither used nor moved.

    >>> drawing(0, 3).sample(range(32), 4) == drawing(0, 3).sample(range(32), 4)
    True
    """
    return random.Random(":".join(map(str, (seed, *place))))
