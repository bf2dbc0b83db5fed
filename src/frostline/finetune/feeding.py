"""Batches for the loop with the frozen part of the model replayed on them."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from frostline.finetune.data import Split
from frostline.finetune.loop import Batch
from frostline.replay import Replay, Replayer, replay
from frostline.replay.store import Store


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long the loop took for a batch.

    Attributes:
        split: number of scans in the split that it is from.
        scans: number of scans in it.
        seconds: time from the end of the batch before to the end of its step.
        is_replayed: whether it was replayed, and not audited.
    """

    split: int
    scans: int
    seconds: float
    is_replayed: bool


class ReplayFeed:
    """A :data:`frostline.finetune.loop.Feed` that replays what is frozen.

    Inputs that nothing live uses are left out. The loop's random numbers are those of
    :func:`frostline.finetune.loop.plain_feed`, and so are its results, bit for bit.

    Args:
        model: frozen in part.
        store: as :func:`frostline.replay` takes it.

    Attributes:
        replays: what replays, one for each split.
        timings: one for each batch so far.

    >>> import frostline as fl
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> frozen = fl.freeze(model, "0")
    >>> split = Split(inputs=torch.randn(4, 2), targets=torch.arange(4))
    >>> feed = ReplayFeed(model, "memory")
    >>> for epoch in range(3):
    ...     for inputs, targets in feed(split, [torch.tensor([3, 1]), torch.tensor([0, 2])]):
    ...         _ = model(inputs)
    >>> feed.replays[0].replayer.stats.replayed
    4
    """

    def __init__(self, model: nn.Module, store: str | Path | Store) -> None:
        self._model = model
        self._store = store
        self._scans: list[_Scans] = []
        self.timings: list[Timing] = []
        self.replays: list[Replay] = []

    @property
    def replayers(self) -> list[Replayer]:
        """What replays: one for each split that was asked for."""
        return [each.replayer for each in self.replays]

    def __call__(self, split: Split, parts: Sequence[Tensor]) -> Generator[Batch, None, None]:
        """The batches, with the model replayed on each until the next is wanted."""
        loader = DataLoader(
            self._scans_of(split),
            batch_sampler=_Parts(split, parts),
            collate_fn=_as_it_is,
            # A loader draws a seed when it starts: not from the generator that dropout draws from.
            generator=torch.Generator(),
        )
        replayed = replay(self._model, loader, self._store, inputs="skip")
        if not any(known is replayed for known in self.replays):
            self.replays.append(replayed)
        # Closed with this generator, also when the loop is left in the middle of an epoch.
        with closing(iter(replayed)) as batches:
            start, before = time.perf_counter(), replayed.replayer.stats
            for batch in batches:
                yield batch
                end, after = time.perf_counter(), replayed.replayer.stats
                self.timings.append(
                    Timing(
                        split=len(split),
                        scans=len(batch[1]),
                        seconds=end - start,
                        is_replayed=after.replayed > before.replayed
                        and after.compared == before.compared,
                    )
                )
                start, before = end, after

    def _scans_of(self, split: Split) -> _Scans:
        for known in self._scans:
            if known.split is split:
                return known
        self._scans.append(_Scans(split))
        return self._scans[-1]


class _Scans(Dataset[Batch]):
    """A split by the scans' numbers, which are the same for every way to split and every seed."""

    def __init__(self, split: Split) -> None:
        self.split = split
        numbers = split.numbers
        self._place = torch.full((int(numbers.max()) + 1,), -1, dtype=torch.int64)
        self._place[numbers] = torch.arange(len(numbers))

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        places = self._place[torch.tensor(numbers)]
        return self.split.inputs[places], self.split.targets[places]


class _Parts(Iterable[list[int]]):
    """Batches drawn beforehand, as a batch sampler of scans' numbers."""

    def __init__(self, split: Split, parts: Sequence[Tensor]) -> None:
        self._parts = [split.numbers[positions].tolist() for positions in parts]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _as_it_is(batch: Any) -> Any:
    return batch
