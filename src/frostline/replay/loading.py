"""A ``DataLoader``'s batches together with the numbers of their samples."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from frostline.errors import ReplayError
from frostline.replay.loading_handover import Handover, hand_over
from frostline.replay.loading_requests import (
    Request,
    RequestedCollate,
    RequestedDataset,
    RequestSampler,
    Skip,
)
from frostline.replay.loading_views import Views, generators_kept
from frostline.replay.loading_wrappers import Wrapping


@dataclass(frozen=True, kw_only=True)
class LoadedBatch:
    """A batch and whose it is.

    Attributes:
        ids: the samples in the batch's order: their indices in the data set, or with
            ``views=K`` index × K + view.
        batch: as the loader would have given it; None if it was skipped.
        epoch: how many iterations were begun before this one.
    """

    ids: tuple[int, ...]
    batch: Any
    epoch: int


class IndexedLoader:
    """Another loader's batches, in its order and grouping, each with its samples' numbers.

    It draws from torch's default generator and from the loader's own exactly what the loader
    would have drawn, in the same order. The loader itself is not touched; its sampler is used,
    so ``loader.sampler.set_epoch(...)`` still works. Workers are the copy's own.

    Args:
        loader: batches a data set that is read by index. A subclass of ``DataLoader``, or a
            wrapper as Accelerate and Fabric prepare, keeps what it does in its ``__iter__``, as
            long as each batch read gives one batch yielded.
        views: with K, each sample has K fixed random variants. While the data set gives view v of
            a sample, the generators of torch (CPU), ``random`` and NumPy are seeded from both,
            so that a view is the same bits in every epoch, worker and process, and put back
            afterwards. The epochs cycle through the views. A generator that the data set itself
            owns, and the collate function, are not reached.
        skip: asked in the main process with the ids of a batch when its indices are drawn; with
            workers that is several batches ahead. Where it says True, neither data set nor
            collate function is called and the batch is None.
        first_epoch: how many iterations over the data set were begun before, by other loaders.

    Attributes:
        cannot_skip: why ``skip`` is never asked; None if it is.

    Raises:
        ReplayError: if samples can't be told apart by number: no ``DataLoader``, an
            ``IterableDataset``, no batching. In iteration: indices that are no whole numbers, or
            a subclass whose batches can't be told.

    >>> import torch
    >>> from torch.utils.data import DataLoader
    >>> loader = DataLoader(torch.arange(5) * 10, batch_size=2)
    >>> for loaded in IndexedLoader(loader):
    ...     print(loaded.ids, loaded.batch)
    (0, 1) tensor([ 0, 10])
    (2, 3) tensor([20, 30])
    (4,) tensor([40])
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        views: int | None = None,
        skip: Skip | None = None,
        first_epoch: int = 0,
    ) -> None:
        self._wrapping = Wrapping(loader)
        self.cannot_skip = _reason_not_to_skip(loader)
        loader = self._wrapping.inner
        _refuse(loader)
        self.loader = loader
        self._views = _views(views, loader.dataset)
        self._dataset = RequestedDataset(loader.dataset, self._views)
        self._collate = RequestedCollate(loader.collate_fn)
        self._handover = Handover()
        self._requests = requests = RequestSampler(
            loader.batch_sampler,  # type: ignore[arg-type]
            views=self._views,
            skip=skip if self.cannot_skip is None else None,
        )
        requests.epoch = first_epoch - 1
        # A copy of the same class, so that a subclass keeps what it does. Past __setattr__,
        # which forbids to change these; and workers already running belong to the original.
        self._copy = copy.copy(loader)
        vars(self._copy).update(
            dataset=self._dataset,
            collate_fn=self._collate,
            batch_sampler=requests,
            _iterator=None,
        )
        hand_over(self._copy, requests=requests, handover=self._handover)

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def next_epoch(self) -> int:
        """How many iterations have been begun."""
        return self._requests.epoch + 1

    def __iter__(self) -> Iterator[LoadedBatch]:
        self._handover.waiting.clear()
        # `map` starts the loader now, as iter(loader) would: it draws a seed there.
        return map(self._loaded, self._wrapping.iterate(self._copy))

    def load(self, ids: Sequence[int]) -> Any:
        """Load one batch now, in the main process, whatever ``skip`` says.

        For a skipped batch that is wanted after all. With workers, the generators are put back
        afterwards, since the loader would not have drawn from them here.

        Args:
            ids: samples, or views of samples, as in :class:`LoadedBatch`.

        Returns:
            What the collate function gives for them.

        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> IndexedLoader(DataLoader(torch.arange(5) * 10, batch_size=2)).load((4, 0))
        tensor([40,  0])
        """
        views = self._views
        indices = list(ids) if views is None else [views.sample(identity)[0] for identity in ids]
        request = Request(indices=indices, ids=tuple(ids), epoch=0, skipped=False)
        with generators_kept() if self.loader.num_workers else nullcontext():
            return self._collate(self._dataset.__getitems__(request)).batch

    def _loaded(self, yielded: Any) -> LoadedBatch:
        request, batch = self._handover.claim(yielded)
        return LoadedBatch(ids=request.ids, batch=batch, epoch=request.epoch)


def _refuse(loader: object) -> None:
    if not isinstance(loader, DataLoader):
        raise ReplayError(
            f"a torch.utils.data.DataLoader is needed, got {type(loader).__name__}: what draws "
            "its samples can't be seen; use fl.Replayer and name them: with replayer.samples(ids)"
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ReplayError(
            f"{type(loader.dataset).__name__} is an IterableDataset: its samples have no numbers, "
            "so none can be recognised in the next epoch; use a data set with __getitem__ and "
            "__len__, or fl.Replayer with numbers of your own: with replayer.samples(ids)"
        )
    if loader.batch_sampler is None:
        raise ReplayError(
            "the DataLoader does not batch (batch_size=None), so one item may hold any number of "
            "samples; give it a batch_size or a batch_sampler, or use fl.Replayer and name the "
            "samples: with replayer.samples(ids)"
        )


def _reason_not_to_skip(loader: DataLoader[Any]) -> str | None:
    if getattr(type(loader), "__iter__", None) is DataLoader.__iter__:
        return None
    return (
        f"{type(loader).__name__} has an __iter__ of its own, which must see every batch; "
        "give fl.replay a plain DataLoader to skip loading"
    )


def _views(count: int | None, dataset: Any) -> Views | None:
    if count is None:
        return None
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ReplayError(f"views is how many variants each sample has, from 1; got {count!r}")
    # Not drawn: that would disturb the loop's random numbers, and differ in the next process.
    return Views(count=count, seed=len(dataset) if hasattr(dataset, "__len__") else 0)
