"""Batches for the loop with the frozen part of the model replayed on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn
from torch.utils.data import DataLoader

from frostline.finetune.loop import Batch, Epoch, batch_size
from frostline.replay import Replay, Replayer, replay
from frostline.replay.store import Store

Feed: TypeAlias = Callable[[DataLoader[Any]], Epoch]
"""``feed(loader)``: one epoch of a loader's batches."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long the loop took for a batch.

    Attributes:
        part: number of the loader that it is from.
        samples: number of samples in it.
        seconds: time from the end of the batch before to the end of its step.
        is_replayed: whether it was replayed, and not audited.
    """

    part: int
    samples: int
    seconds: float
    is_replayed: bool


def plain_feed(loader: DataLoader[Any]) -> Epoch:
    """The batches as they are loaded."""
    return loader


class ReplayFeed:
    """A :data:`Feed` that replays what is frozen.

    Inputs that nothing live uses are left out. The loop's random numbers are those of
    :func:`plain_feed`, and so are its results, bit for bit.

    Args:
        model: frozen in part.
        store: as :func:`frostline.replay` takes it.

    Attributes:
        replays: what replays, one for each loader.
        timings: one for each batch so far.

    >>> import frostline as fl, torch
    >>> from torch.utils.data import TensorDataset
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> frozen = fl.freeze(model, "0")
    >>> loader = DataLoader(TensorDataset(torch.randn(4, 2), torch.arange(4)), batch_size=2)
    >>> feed = ReplayFeed(model, "memory")
    >>> for epoch in range(3):
    ...     for inputs, targets in feed(loader):
    ...         _ = model(inputs)
    >>> feed.replays[0].replayer.stats.replayed
    4
    """

    def __init__(self, model: nn.Module, store: str | Path | Store) -> None:
        self._model = model
        self._store = store
        self.timings: list[Timing] = []
        self.replays: list[Replay] = []

    @property
    def replayers(self) -> list[Replayer]:
        """What replays: one for each loader that was asked for."""
        return [each.replayer for each in self.replays]

    def __call__(self, loader: DataLoader[Any]) -> Epoch:
        """The loader's batches, with the model replayed on each until the next is wanted."""
        replayed = replay(self._model, loader, self._store, inputs="skip")
        if not any(known is replayed for known in self.replays):
            self.replays.append(replayed)
        return _Timed(replayed, self.replays.index(replayed), self.timings)


class _Timed:
    """A replayed loader that notes how long the loop takes for each batch."""

    def __init__(self, replayed: Replay, part: int, timings: list[Timing]) -> None:
        self._replayed, self._part, self._timings = replayed, part, timings

    def __len__(self) -> int:
        return len(self._replayed)

    def __iter__(self) -> Generator[Batch, None, None]:
        replayed = self._replayed
        # Closed with this generator, also when the loop is left in the middle of an epoch.
        with closing(iter(replayed)) as batches:
            start, before = time.perf_counter(), replayed.replayer.stats
            for batch in batches:
                yield batch
                end, after = time.perf_counter(), replayed.replayer.stats
                self._timings.append(
                    Timing(
                        part=self._part,
                        samples=batch_size(batch),
                        seconds=end - start,
                        is_replayed=after.replayed > before.replayed
                        and after.compared == before.compared,
                    )
                )
                start, before = end, after
