"""A sampler under which each rank keeps its samples, for ranks that share no folder."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from torch import distributed
from torch.utils.data import Sampler

from frostline.errors import ReplayError


class HomeSampler(Sampler[int]):
    """Deals the samples to the ranks once, and lets each shuffle its own in every epoch.

    A ``DistributedSampler`` deals anew in every epoch, so a rank is given samples that only
    another has recorded. Here what a rank has recorded it is given again: with records of its
    own, in memory or on its machine's disk, all is replayed from the second epoch on. The price:
    a rank's batches are mixed from its share only. The shares are drawn at random from ``seed``,
    so that sorted data is spread evenly.

    All ranks have equally many samples: if the data does not come out even, a rank with one
    sample less draws one of its own twice, or with ``drop_last`` the others leave one out for good.

    Give it to a ``DataLoader`` as ``sampler``, and do not have a framework distribute that loader
    once more (``accelerator.prepare``; ``use_distributed_sampler=False`` for Lightning).

    Args:
        data: what is sampled: anything with a length.
        num_replicas: how many ranks; None: those of the process group.
        rank: which of them this is; None: as the process group has it.
        shuffle: whether each epoch has an order of its own.
        seed: of the shares and orders; the same on all ranks.
        drop_last: what becomes of data that does not come out even, as above.

    Attributes:
        stays_home: True: tells replay that no rank waits for another's records.

    Raises:
        ReplayError: (a RuntimeError) there is no such rank, or there are fewer samples than ranks.

    >>> ranks = [HomeSampler(range(6), num_replicas=2, rank=rank) for rank in range(2)]
    >>> first = [list(rank) for rank in ranks]
    >>> for rank in ranks:
    ...     rank.set_epoch(1)
    >>> [set(rank) == set(before) for rank, before in zip(ranks, first)]
    [True, True]
    >>> sorted(first[0] + first[1]), len(ranks[0])
    ([0, 1, 2, 3, 4, 5], 3)
    """

    stays_home = True

    def __init__(
        self,
        data: Sized,
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.num_replicas = _or_of_group(num_replicas, distributed.get_world_size, default=1)
        self.rank = _or_of_group(rank, distributed.get_rank, default=0)
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        if not 0 <= self.rank < self.num_replicas:
            raise ReplayError(
                f"rank counts from 0 to num_replicas - 1 = {self.num_replicas - 1}, got {self.rank}"
            )
        count = len(data)
        if count < self.num_replicas:
            raise ReplayError(
                f"{count} samples can't be dealt to {self.num_replicas} ranks: each needs one"
            )
        dealt = torch.randperm(count, generator=self._generator(0))
        fewest, over = divmod(count, self.num_replicas)
        own = dealt[self.rank :: self.num_replicas].tolist()
        if over and not drop_last:
            own += own[: fewest + 1 - len(own)]
        self._home: list[int] = own[:fewest] if drop_last else own

    def __len__(self) -> int:
        return len(self._home)

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(self._home)
        order = torch.randperm(len(self._home), generator=self._generator(1 + self.epoch))
        return iter([self._home[place] for place in order.tolist()])

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next epoch, as of a ``DistributedSampler``."""
        self.epoch = epoch

    def _generator(self, turn: int) -> torch.Generator:
        # The ranks' orders may be alike: what they order is not.
        return torch.Generator().manual_seed(self.seed + turn)


def _or_of_group(given: int | None, ask: object, *, default: int) -> int:
    if given is not None:
        return given
    if not (distributed.is_available() and distributed.is_initialized()):
        return default
    assert callable(ask)
    return int(ask())
