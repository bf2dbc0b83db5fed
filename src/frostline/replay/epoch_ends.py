"""Ranks that share a folder begin an epoch when all have written out the one before."""

from __future__ import annotations

import warnings
from collections import Counter
from datetime import timedelta
from typing import Any

from torch import distributed

from frostline.distributed import has_peers
from frostline.replay.limits import ReplayWarning

_PATIENCE = timedelta(seconds=60)


class EpochEnds:
    """Waits between epochs for the other ranks, where each is dealt its share of one data set.

    What another rank drew in this epoch is drawn here in the next, and is found only once it is
    on the disk. No collective: a rank that does not come costs a minute, once, and its samples
    are computed.

    Args:
        facts: tells apart what ranks wait for; the same on all of them.

    >>> ends = EpochEnds("a data set of 80")
    >>> ends.reach(), ends.wait()  # alone
    (None, None)
    """

    def __init__(self, facts: str) -> None:
        self._facts = facts
        self._awaited: list[str] = []
        self._is_alone = False

    def reach(self) -> None:
        """Say that this rank has written out an epoch."""
        if self._is_alone or not has_peers():
            return
        _reached[self._facts] += 1
        stem = f"frostline/replay/{self._facts}/{_reached[self._facts]}"
        self._awaited = [f"{stem}/{rank}" for rank in range(distributed.get_world_size())]
        _store().set(self._awaited[distributed.get_rank()], "")

    def wait(self) -> None:
        """Wait until all ranks have said so, if this one has."""
        awaited, self._awaited = self._awaited, []
        if not awaited or not has_peers():  # the group may be gone by now
            return
        try:
            _store().wait(awaited, _PATIENCE)
        except RuntimeError:  # the store has nothing more special for a timeout
            self._is_alone = True
            warnings.warn(
                "other ranks did not come to the end of the epoch; what they record and this one"
                " does not find is computed",
                ReplayWarning,
                stacklevel=2,
            )


_reached: Counter[str] = Counter()
"""Epochs that this process has written out: a later model's must not be taken for an earlier's."""


def is_dealt(loader: Any) -> bool:
    """Whether each rank draws another share of the samples in each epoch, as dealt to all.

    >>> from torch.utils.data import DataLoader, DistributedSampler
    >>> is_dealt(DataLoader(range(4)))
    False
    >>> is_dealt(DataLoader(range(4), sampler=DistributedSampler(range(4), 2, 0)))
    True
    """
    waiting, seen = [loader], 0
    while waiting and seen < _DEPTH:
        dealer = waiting.pop()
        seen += 1
        if isinstance(getattr(dealer, "stays_home", None), bool):
            return False
        # DistributedSampler, Lightning's wrapper of it; Accelerate's shards of batches.
        shares = (getattr(dealer, name, 1) for name in ("num_replicas", "num_processes"))
        if any(isinstance(share, int) and share > 1 for share in shares):
            return True
        inner = (getattr(dealer, name, None) for name in ("sampler", "batch_sampler"))
        waiting += [each for each in inner if each is not None]
    return False


_DEPTH = 16
"""Samplers that hold samplers, at most: some answer for any attribute."""


def _store() -> Any:
    """Where the processes found each other."""
    return distributed.distributed_c10d._get_default_store()
