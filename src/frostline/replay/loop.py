"""``for batch in fl.replay(model, loader)``: the one line that a loop changes."""

from __future__ import annotations

import copy
import random
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from frostline.errors import ModelTypeError, ReplayError
from frostline.replay.epoch_ends import EpochEnds, is_dealt
from frostline.replay.fields import rebuild
from frostline.replay.fields_memory import FieldMemory
from frostline.replay.folder_store import FolderStore
from frostline.replay.loading import IndexedLoader, LoadedBatch
from frostline.replay.replayer import Replayer
from frostline.replay.skipping import Fields
from frostline.replay.store import Store
from frostline.replay.suitable import bare

Inputs = Literal["load", "skip"]


def replay(
    model: nn.Module,
    loader: DataLoader[Any],
    store: str | Path | Store = "memory",
    *,
    inputs: Inputs = "load",
    audit: float = 0.0,
    views: int | None = None,
    evict: bool = False,
    budget: int | None = None,
    rounding: bool = False,
    keep_as: torch.dtype | None = None,
) -> Replay:
    """Give a loader's batches, and replay the frozen part of the model on them.

    The batches are the loader's, in its order; the loop calls the model as ever. In the first
    epoch what the frozen part computes is recorded, at the frost line; from the second on it is
    not computed any more. Losses and weights have the bits that they would have without. What
    can't be replayed safely is computed: ``.replayer.declined`` says why.

    It may be called before the first epoch, or in every epoch: for the same model and data set it
    goes on where it was.

    Args:
        model: frozen in part, by :func:`frostline.freeze` or by hand.
        loader: batches a data set that is read by index.
        store: ``"memory"``; or a folder, in which later runs, with another head, learning rate or
            seed, find what was recorded.
        inputs: ``"load"`` loads every batch in full. ``"skip"`` does not load samples any more of
            which the loop's model needs nothing but what is kept; the fields come as placeholders
            that poison what is computed from them (NaN, or the least integer), so that a loop
            which uses them outside of the model fails instead of training on nothing.
        audit: share of replayed batches, from 0 to 1, that are also computed and compared,
            besides the 1st, 8th, 64th and so on.
        views: with random augmentation, how many fixed variants each sample has.
        evict: whether frozen tensors that are not used any more leave the memory, once all
            samples are recorded; they come back by themselves when the model needs them.
        budget: bytes that may be kept at most.
        rounding: whether parts may be replayed whose last bits depend on the rest of the batch.
        keep_as: ``torch.bfloat16`` or ``torch.float16`` to keep wider floating values in fewer
            bytes; losses are then near those without replay, no longer the same.

    Raises:
        ReplayError: (a RuntimeError) the loader's samples can't be told apart by number, an
            argument is out of range, or the store can't be opened. In the loop: an audit found
            that replayed values were not the true ones.

    >>> import frostline as fl, torch
    >>> from torch import Tensor, nn
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> frozen = fl.freeze(model, all_but="2")
    >>> data = TensorDataset(torch.randn(64, 8), torch.randint(2, (64,)))
    >>> loader = DataLoader(data, batch_size=32, shuffle=True)
    >>> optimizer = fl.optimizer(torch.optim.AdamW, model, lr=1e-2)
    >>> for epoch in range(3):
    ...     for x, y in fl.replay(model, loader):
    ...         optimizer.zero_grad()
    ...         nn.functional.cross_entropy(model(x), y).backward()
    ...         optimizer.step()
    >>> fl.replay(model, loader).replayer.stats.replayed
    4
    """
    if not isinstance(model, nn.Module):
        raise ModelTypeError(f"a torch.nn.Module is wanted, got {model!r}")
    if inputs not in ("load", "skip"):
        raise ReplayError(f'inputs is "load" or "skip", got {inputs!r}')
    model = bare(model)
    options = {
        "store": store,
        "inputs": inputs,
        "audit": audit,
        "views": views,
        "evict": evict,
        "budget": budget,
        "rounding": rounding,
        "keep_as": keep_as,
    }
    held: _Held = vars(model).setdefault("_frostline_replays", _Held())
    for position, known in enumerate(held):
        if known.serves(loader, options):
            held[position] = given = known.beside(loader)
            return given
    made = Replay(model, loader, options)
    made.replayer.passes.share(held.open)
    held[:] = [*held[-_REMEMBERED:], made]
    return made


_REMEMBERED = 7
"""Loaders of one model, besides the newest, whose records are kept."""


class _Held(list["Replay"]):
    """What :func:`replay` made for a model, on the model: a copy of the model starts with none."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[Fields] = []

    def __deepcopy__(self, memo: object) -> _Held:
        return _Held()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Held, ()


class Replay:
    """A loader's batches, with the model replayed on them; made by :func:`replay`.

    Attributes:
        replayer: does the work; it tells what was replayed and what was not, and why.
        loader: whose batches these are.
    """

    def __init__(self, model: nn.Module, loader: DataLoader[Any], options: dict[str, Any]) -> None:
        self._options = options
        self._skips = options["inputs"] == "skip"
        self._indexed = IndexedLoader(loader, views=options["views"], skip=self._may_skip)
        self.loader = loader
        self.replayer = Replayer(
            model,
            store=options["store"],
            budget=options["budget"],
            audit=options["audit"],
            rounding=options["rounding"],
            keep_as=options["keep_as"],
        )
        self._memory = FieldMemory()
        self._unlearned: list[tuple[tuple[int, ...], Any]] = []
        self._why_not: str | None = self._indexed.cannot_skip
        if self.replayer.passes.table.is_sharded:
            self._why_not = "ranks of a sharded model go in step: each looks at what it brings"
            if options["evict"]:
                raise ReplayError(
                    "evict is not for a model that fully_shard has sharded: only shards of its"
                    " frozen part are held. Offload them: fully_shard(..., offload_policy=...)"
                )
        self._is_evicted = not options["evict"]
        self._ends = _ends(loader) if _is_shared(options) else None

    def serves(self, loader: DataLoader[Any], options: dict[str, Any]) -> bool:
        """Whether this is for that loader, or for another one of the same data set."""
        if options != self._options:
            return False
        dataset = getattr(loader, "dataset", None)
        return loader is self.loader or dataset is self.loader.dataset

    def beside(self, loader: DataLoader[Any]) -> Replay:
        """The same for a loader's batches: what is recorded serves both, and both may be looped.

        Args:
            loader: of the same data set.

        Raises:
            ReplayError: (a RuntimeError) its samples can't be told apart by number.
        """
        if loader is self.loader:
            return self
        other = copy.copy(self)
        other.over(loader)
        return other

    def over(self, loader: DataLoader[Any]) -> None:
        """Give another loader's batches from now on; what was recorded serves on.

        Args:
            loader: of the same data set, such as the same one prepared by Accelerate.

        Raises:
            ReplayError: (a RuntimeError) its samples can't be told apart by number.
        """
        self._indexed = IndexedLoader(
            loader,
            views=self._options["views"],
            skip=self._may_skip,
            first_epoch=self._indexed.next_epoch,
        )
        self._why_not = self._why_not or self._indexed.cannot_skip
        self.loader = loader

    @property
    def not_skipping(self) -> str | None:
        """Why every batch is loaded in full although ``inputs="skip"`` was asked for, or None."""
        return (self._why_not or self._memory.refused) if self._skips else None

    def __len__(self) -> int:
        return len(self._indexed)

    def __iter__(self) -> Generator[Any, None, None]:
        if self._ends is not None:
            self._ends.wait()
        # Not in the generator: the loader draws a seed when it is started, and that is now.
        return self._batches(self._indexed, iter(self._indexed))

    def _batches(
        self, indexed: IndexedLoader, batches: Iterator[LoadedBatch]
    ) -> Generator[Any, None, None]:
        is_first = True
        while True:
            before = None if is_first or not self._skips else _randomness()
            loaded = next(batches, None)
            if loaded is None:
                break
            if before is not None and loaded.batch is not None and before != _randomness():
                self._why_not = (
                    "loading a batch draws random numbers in the main process, which skipping"
                    " would keep from the rest of the loop; use workers"
                )
            is_first = False
            yield from self._opened(indexed, loaded)
        self._end_of_epoch(indexed)

    def _opened(self, indexed: IndexedLoader, loaded: LoadedBatch) -> Iterator[Any]:
        """Yield one batch, with the model replayed on it until the loop wants the next."""
        ids, batch = loaded.ids, loaded.batch
        is_poisoned = batch is None
        if is_poisoned:
            # Beside another batch none is poisoned: on other devices placeholders look alike.
            is_beside = self.replayer.passes.has_open_batch
            batch = None if is_beside else self._memory.assemble(ids)
            if batch is None:
                is_poisoned, batch = False, indexed.load(ids)
        elif self._skips and self._why_not is None:
            self._learn(ids, batch)
        fields = Fields(
            batch,
            is_poisoned=is_poisoned,
            load=lambda: indexed.load(ids),
        )
        with self.replayer.passes.batch(ids, fields):
            yield batch

    # Skipping.

    def _may_skip(self, ids: tuple[int, ...]) -> bool:
        return (
            self._skips
            and self._why_not is None
            and self._memory.knows(ids)
            and self.replayer.passes.needs_no_inputs(ids)
        )

    def _learn(self, ids: tuple[int, ...], batch: Any) -> None:
        unneeded = self.replayer.passes.unneeded_fields
        if not unneeded:
            # Nothing has been traced yet; the first batches are learned when it has.
            if len(self._unlearned) < 2:
                self._unlearned.append((ids, _copied(batch)))
            return
        for earlier in self._unlearned:
            self._memory.learn(*earlier, unneeded)
        self._unlearned.clear()
        path = self._memory.disagrees(ids, batch)
        if path is not None:
            self._why_not = f"the field {path!r} of a sample is not the same in every batch"
        self._memory.learn(ids, batch, unneeded)

    def _end_of_epoch(self, indexed: IndexedLoader) -> None:
        self.replayer.passes.end_epoch()
        if self._ends is not None and is_dealt(indexed.loader):
            self._ends.reach()
        if not self._is_evicted and self.replayer.stats.replayed:
            self.replayer.passes.evict()
            self._is_evicted = True


def _ends(loader: Any) -> EpochEnds:
    data = loader.dataset
    return EpochEnds(f"{type(data).__name__} of {len(data) if hasattr(data, '__len__') else '?'}")


def _is_shared(options: dict[str, Any]) -> bool:
    """Whether other ranks may write to the store, too."""
    store = options["store"]
    return isinstance(store, FolderStore) or (isinstance(store, str | Path) and store != "memory")


def _copied(batch: Any) -> Any:
    return rebuild(batch, lambda path, leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def _randomness() -> tuple[Any, ...]:
    name, words, *rest = cast(tuple[Any, ...], np.random.get_state())
    numpy_state = name, words.tobytes(), *rest
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy_state
