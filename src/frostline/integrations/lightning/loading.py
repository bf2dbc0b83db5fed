"""A training loader inside Lightning that tells which samples the batch in hand has."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from frostline.errors import ReplayError
from frostline.replay.loading import IndexedLoader


class NotedLoader:
    """Another loader's batches, and the numbers of the samples of the last one.

    Lightning puts a sampler for several processes into the loader before it comes here, and sets
    ``worker_init_fn`` and the epoch on it afterwards: everything public is the loader's own.

    Raises:
        ReplayError: (a RuntimeError) its samples can't be told apart by number.

    >>> import torch
    >>> from torch.utils.data import DataLoader
    >>> noted = NotedLoader(DataLoader(torch.arange(4), batch_size=2))
    >>> [(batch.tolist(), noted.take()) for batch in noted]
    [([0, 1], (0, 1)), ([2, 3], (2, 3))]
    """

    def __init__(self, loader: Any) -> None:
        vars(self).update(_loader=loader, _indexed=IndexedLoader(loader), _ids=())

    def __len__(self) -> int:
        return len(vars(self)["_loader"])

    def __iter__(self) -> Iterator[Any]:
        mine = vars(self)
        # Made now, of the loader as Lightning has left it.
        mine["_indexed"] = indexed = IndexedLoader(
            mine["_loader"], first_epoch=mine["_indexed"].next_epoch
        )
        return map(self._note, iter(indexed))

    def take(self) -> tuple[int, ...]:
        """The samples of the batch that was given last; once, then none."""
        ids: tuple[int, ...] = vars(self)["_ids"]
        vars(self)["_ids"] = ()
        return ids

    def _note(self, loaded: Any) -> Any:
        vars(self)["_ids"] = loaded.ids
        return loaded.batch

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(vars(self)["_loader"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_loader"], name, value)


def parts_of(model: nn.Module) -> nn.Module:
    """The modules that a LightningModule's steps call, without the LightningModule itself.

    It has the trainer and its own lists and counters, and its ``training_step`` is no forward that
    could be watched: the calls that it makes of its parts are.

    >>> list(parts_of(nn.Sequential(nn.Linear(2, 2))).state_dict())
    ['0.weight', '0.bias']
    """
    parts = nn.Module()
    for name, child in model.named_children():
        parts.add_module(name, child)
    return parts


def refuse_own_fetching(model: nn.Module) -> None:
    """Raise ReplayError if the training step takes batches from the loader by itself."""
    step = getattr(model, "training_step", None)
    if step is not None and "dataloader_iter" in inspect.signature(step).parameters:
        raise ReplayError(
            f"{type(model).__name__}.training_step takes its batches from dataloader_iter, so it"
            " can't be told which samples it works on: take `batch` instead, or leave replay out"
        )
