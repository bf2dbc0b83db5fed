"""Random augmentation with a fixed number of variants: views of a sample."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy
import torch
import xxhash


@dataclass(frozen=True, kw_only=True)
class Views:
    """How many variants each sample has, and which random numbers each is made with.

    Attributes:
        count: variants of each sample, from 1.
        seed: what the variants of all samples follow from, together with index and view.

    >>> views = Views(count=4, seed=60_000)
    >>> [views.of(index=7, epoch=epoch) for epoch in range(5)]
    [3, 0, 1, 2, 3]
    >>> views.identity(index=7, view=3), views.sample(31)
    (31, (7, 3))
    """

    count: int
    seed: int

    def of(self, *, index: int, epoch: int) -> int:
        """The view of a sample in an epoch: each in its turn, neighbours out of step."""
        return (epoch + index) % self.count

    def identity(self, *, index: int, view: int) -> int:
        """The number that names one view of one sample."""
        return index * self.count + view

    def sample(self, identity: int) -> tuple[int, int]:
        """The index and the view that an identity names."""
        return divmod(identity, self.count)

    @contextmanager
    def random_numbers(self, identity: int) -> Iterator[None]:
        """Give the block the view's own random numbers; the generators are put back afterwards."""
        seed = xxhash.xxh3_64_intdigest(f"{self.seed}|{identity}|{self.count}".encode())
        with generators_kept():
            # torch.manual_seed would also seed every device, which nothing puts back.
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed & 0xFFFF_FFFF)
            yield


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the default generators of torch (CPU), random and NumPy back after the block.

    >>> import torch
    >>> before = torch.get_rng_state()
    >>> with generators_kept():
    ...     _ = torch.rand(3)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    of_torch = torch.get_rng_state()
    of_random = random.getstate()
    of_numpy = numpy.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        random.setstate(of_random)
        numpy.random.set_state(of_numpy)
