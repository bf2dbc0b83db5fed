"""Which samples come in which batch, and the loaders that fetch them."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from torch.utils.data import DataLoader, Dataset, Sampler


class Batches(Sampler[list[int]]):
    """Positions of samples, batch by batch; for training in an order of its own in each epoch.

    The order is drawn from ``(seed, epoch)``, so an epoch is the same whether the ones before it
    ran in this process or in another. Among several ranks each has its share: of the same size on
    all of them for training, where a few samples come twice if they don't divide, since each step
    is made together; without any repeated otherwise.

    Args:
        count: number of samples.
        size: samples a batch. The last is smaller where they don't divide; if it would be a single
            sample for training it joins the batch before, since BatchNorm can't train on one.
        seed: the run's seed; None for the samples as they come, once each.
        rank: this process's number.
        ranks: number of processes.

    Attributes:
        epoch: number of the epoch, from 1.

    >>> [len(batch) for batch in Batches(7, 3, seed=0)], list(Batches(4, 3))
    ([3, 4], [[0, 1, 2], [3]])
    """

    def __init__(
        self, count: int, size: int, *, seed: int | None = None, rank: int = 0, ranks: int = 1
    ) -> None:
        self.epoch = 1
        self._count, self._size, self._seed = count, size, seed
        self._rank, self._ranks = rank, ranks

    def __iter__(self) -> Iterator[list[int]]:
        share = self._share()
        if not share:
            return iter(())
        ends = [*range(self._size, len(share), self._size), len(share)]
        if self._seed is not None and len(ends) > 1 and ends[-1] - ends[-2] == 1 < self._size:
            del ends[-2]
        return iter([share[start:end] for start, end in zip([0, *ends], ends, strict=False)])

    def __len__(self) -> int:
        whole, rest = divmod(self._length, self._size)
        if self._seed is not None and self._size > 1 and whole:
            return whole + (rest > 1)
        return whole + (rest > 0)

    @property
    def _length(self) -> int:
        if self._seed is not None:
            return -(-self._count // self._ranks)
        return len(range(self._rank, self._count, self._ranks))

    def _share(self) -> list[int]:
        if self._seed is None:
            return list(range(self._rank, self._count, self._ranks))
        draw = torch.Generator().manual_seed(epoch_seed(self._seed, self.epoch))
        order = itertools.cycle(torch.randperm(self._count, generator=draw).tolist())
        full = itertools.islice(order, self._length * self._ranks)
        return list(itertools.islice(full, self._rank, None, self._ranks))


def make_loader(
    dataset: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    batches: Batches,
    *,
    workers: int = 0,
) -> DataLoader[Any]:
    """A loader of these batches that draws nothing from the default generator.

    Args:
        dataset: the samples.
        collate: makes one batch of several.
        batches: which samples come together.
        workers: processes that load; 0 for none. New ones start with each epoch, and draw from
            what the loader's ``generator`` was seeded with: those that stay would go on drawing.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        # A loader draws a seed when it starts: not from the generator that dropout draws from.
        generator=torch.Generator(),
    )


def seed_generators(seed: int) -> None:
    """Seed what samples and models draw from: torch, ``random`` and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed & 0xFFFF_FFFF)  # it takes 32 bits


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """A seed for one epoch on one rank; neighbours give unrelated ones."""
    text = f"{seed}:{epoch}" + (f":{rank}" if rank else "")
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch takes 63 bits
