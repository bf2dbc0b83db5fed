from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from frostline.errors import ReplayError
from frostline.replay.loading import IndexedLoader

SIZE = 11


class Squares(Dataset):
    """Gives number and square, and notes what it was asked for."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.asked: list[int] = []
        self.offset = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked.append(int(index))
        return {"number": int(index), "square": torch.tensor(float(index) ** 2) + self.offset}


class AtOnce(Squares):
    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        assert type(indices) is list
        return [{**self[index], "batch_of": len(indices)} for index in indices]


class Noisy(Squares):
    """Draws from every generator there is."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = (torch.rand(2), random.random(), numpy.random.rand(2))
        return {**super().__getitem__(index), "torch": drawn[0], "random": drawn[1:]}


class Eager:
    """A batch sampler that draws its order as soon as it is iterated over."""

    def __iter__(self):
        return iter(torch.randperm(SIZE).split(3))

    def __len__(self) -> int:
        return 4


class Endless:
    def __iter__(self):
        yield from ([numpy.int64(index)] for index in torch.randperm(3).tolist())


class ReadOnce:
    def __iter__(self):
        return iter([iter([3, 1]), iter([2])])


class Scaled(DataLoader):
    """A user's loader that changes every batch on its way out."""

    def __iter__(self):
        for batch in super().__iter__():
            yield {name: value.double() * 2 for name, value in batch.items()}


class ReadsAhead(DataLoader):
    def __iter__(self):
        batches = super().__iter__()
        held = next(batches)
        for batch in batches:
            yield dict(held)
            held = batch
        yield dict(held)


class Drops(DataLoader):
    def __iter__(self):
        for place, batch in enumerate(super().__iter__()):
            if place % 2:
                yield batch


class Merges(DataLoader):
    def __iter__(self):
        batches = super().__iter__()
        for batch in batches:
            yield [batch, next(batches)]


def stacked(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {"sum": torch.stack([sample["square"] for sample in samples]).cumsum(0)}


def drawn_numbers(samples: list[dict[str, Any]]) -> list[float]:
    return [sample["random"][0] for sample in samples]


def set_offset(worker: int) -> None:
    info = get_worker_info()
    assert isinstance(info.dataset, Squares)
    info.dataset.offset = 100 * worker


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def weighted() -> WeightedRandomSampler:
    return WeightedRandomSampler([float(index) for index in range(SIZE)], 20, replacement=True)


def distributed() -> DistributedSampler:
    sampler = DistributedSampler(Squares(), num_replicas=2, rank=1, seed=5)
    sampler.set_epoch(4)
    return sampler


def of(dataset: Callable[[], Any] = Squares, /, kind=DataLoader, **options: Any):
    """A loader's maker: options that are functions of nothing are made anew each time."""

    def make():
        made = {
            name: value() if name in {"generator", "sampler", "batch_sampler"} else value
            for name, value in options.items()
        }
        return kind(dataset(), **made)

    return make


LOADERS = [
    pytest.param(of(batch_size=4), id="sequential"),
    pytest.param(of(batch_size=4, shuffle=True), id="shuffle"),
    pytest.param(of(batch_size=4, shuffle=True, drop_last=True), id="drop-last"),
    pytest.param(of(batch_size=4, shuffle=True, generator=generator), id="generator"),
    pytest.param(of(batch_size=3, sampler=weighted), id="weighted-with-replacement"),
    pytest.param(of(batch_size=3, sampler=distributed), id="distributed"),
    pytest.param(
        of(batch_sampler=lambda: BatchSampler(RandomSampler(range(SIZE)), 3, False)),
        id="batch-sampler",
    ),
    pytest.param(of(batch_sampler=Eager), id="eager-batches-of-tensors"),
    pytest.param(of(batch_sampler=Endless), id="no-length-numpy-numbers"),
    pytest.param(of(batch_sampler=ReadOnce), id="batches-read-once"),
    pytest.param(of(batch_size=4, shuffle=True, collate_fn=stacked), id="collate"),
    pytest.param(of(AtOnce, batch_size=4, shuffle=True), id="getitems"),
    pytest.param(of(Noisy, batch_size=4, shuffle=True), id="random-data"),
    pytest.param(of(lambda: Subset(Squares(), [5, 1, 7]), batch_size=2, shuffle=True), id="subset"),
    pytest.param(of(lambda: Subset(AtOnce(), [5, 1, 7]), batch_size=2), id="subset-of-getitems"),
    pytest.param(
        of(lambda: ConcatDataset([Squares(3), Squares(4)]), batch_size=3, shuffle=True), id="concat"
    ),
    pytest.param(
        of(lambda: TensorDataset(torch.arange(7), torch.eye(7)), batch_size=3, shuffle=True),
        id="tensors",
    ),
    pytest.param(of(lambda: torch.arange(9), batch_size=4, shuffle=True), id="a-tensor"),
    pytest.param(of(batch_size=4, shuffle=True, pin_memory=True), id="pinned"),
    pytest.param(of(kind=Scaled, batch_size=4, shuffle=True), id="own-iter"),
    pytest.param(of(kind=ReadsAhead, batch_size=4, shuffle=True), id="own-iter-reads-ahead"),
    pytest.param(of(kind=Drops, batch_size=2, shuffle=True), id="own-iter-drops"),
    pytest.param(of(Noisy, batch_size=4, shuffle=True, num_workers=2), id="workers"),
    pytest.param(
        of(Noisy, batch_size=2, shuffle=True, num_workers=2, persistent_workers=True),
        id="persistent-workers",
    ),
    pytest.param(
        of(batch_size=2, shuffle=True, num_workers=2, worker_init_fn=set_offset), id="worker-init"
    ),
    pytest.param(of(kind=Scaled, batch_size=4, shuffle=True, num_workers=2), id="own-iter-workers"),
]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)


def epochs_of(make: Callable[[], Any], loads: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Two epochs, with draws of the loop between all that the loader draws."""
    seed()
    loader = make()
    batches, drawn = [], []
    source = loads(loader)
    for _ in range(2):
        iterator = iter(source)
        drawn.append(torch.rand(1))
        for batch in iterator:
            batches.append(batch)
            drawn.append(torch.rand(1))
    states = torch.get_rng_state(), random.getstate(), list(numpy.random.get_state()[1])
    own = loader.generator.get_state() if loader.generator is not None else None
    return batches, drawn, states, own


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
@pytest.mark.parametrize("make", LOADERS)
def test_batches_and_random_numbers_are_the_loaders(make):
    theirs, drawn, states, own = epochs_of(make, lambda loader: loader)
    mine, drawn_here, states_here, own_here = epochs_of(make, IndexedLoader)
    assert len(mine) > 2
    assert same([loaded.batch for loaded in mine], theirs)
    assert same(drawn_here, drawn)
    assert same(states_here[0], states[0])
    assert states_here[1:] == states[1:]
    assert own is None or torch.equal(own, own_here)


@pytest.mark.parametrize("make", LOADERS)
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_ids_are_the_indices_of_the_samples(make):
    loaded = epochs_of(make, IndexedLoader)[0]
    numbered = [each for each in loaded if isinstance(each.batch, dict) and "number" in each.batch]
    for each in numbered:
        factor = 2 if each.batch["number"].is_floating_point() else 1
        numbers = (each.batch["number"] / factor).long().tolist()
        if isinstance(make().dataset, Squares):
            assert list(each.ids) == numbers
    assert all(type(index) is int for each in loaded for index in each.ids)
    assert {each.epoch for each in loaded} == {0, 1}


def test_spawned_workers():
    def numbers(**options: Any) -> list[Any]:
        loader = DataLoader(Noisy(6), batch_size=3, collate_fn=drawn_numbers, **options)
        return [(loaded.ids, loaded.batch) for loaded in IndexedLoader(loader, views=2)]

    here = numbers()
    assert [ids for ids, _ in here] == [(0, 3, 4), (7, 8, 11)]
    assert numbers(num_workers=1, multiprocessing_context="spawn") == here


def test_batches_out_of_order_keep_their_ids():
    loader = DataLoader(Squares(), batch_size=2, num_workers=2, in_order=False)
    for loaded in IndexedLoader(loader):
        assert loaded.batch["number"].tolist() == list(loaded.ids)


def test_the_loader_itself_is_left_as_it_was():
    loader = DataLoader(Squares(), batch_size=2)
    before = dict(vars(loader))
    list(IndexedLoader(loader))
    assert vars(loader) == before
    assert len(IndexedLoader(loader)) == 6


def test_two_iterations_at_once():
    indexed = IndexedLoader(DataLoader(Squares(), batch_size=4))
    pairs = list(zip(indexed, indexed, strict=True))
    assert [(one.ids, one.epoch, other.epoch) for one, other in pairs] == [
        ((0, 1, 2, 3), 0, 1), ((4, 5, 6, 7), 0, 1), ((8, 9, 10), 0, 1),
    ]  # fmt: skip


def test_an_iteration_that_was_left_does_not_confuse_the_next():
    batches = [[0, 1], [2, 3]]
    indexed = IndexedLoader(ReadsAhead(Squares(), batch_sampler=batches))
    next(iter(indexed))  # has read the second one, too
    batches.reverse()
    assert [(loaded.ids, loaded.epoch) for loaded in indexed] == [((2, 3), 1), ((0, 1), 1)]


def test_a_loader_whose_workers_run_already():
    loader = DataLoader(Squares(), batch_size=4, num_workers=1, persistent_workers=True)
    theirs = list(loader)
    assert same([loaded.batch for loaded in IndexedLoader(loader)], theirs)
    assert same(list(loader), theirs)


def test_workers_end_with_the_indexed_loader():
    loader = DataLoader(Squares(), batch_size=4, num_workers=1, persistent_workers=True)
    indexed = IndexedLoader(loader)
    list(indexed)
    workers = indexed._copy._iterator._workers
    assert [worker.is_alive() for worker in workers] == [True]
    del indexed
    assert [worker.is_alive() for worker in workers] == [False]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda: DataLoader(Stream()), "IterableDataset", id="iterable"),
        pytest.param(
            lambda: DataLoader(Squares(), batch_size=None), "does not batch", id="no-batch"
        ),
        pytest.param(lambda: [torch.ones(2)], "got list", id="no-loader"),
    ],
)
def test_refused_at_once(make, reason):
    with pytest.raises(ReplayError, match=rf"(?s){reason}.*replayer\.samples\(ids\)"):
        IndexedLoader(make())


@pytest.mark.parametrize(
    "batches",
    [
        pytest.param([["a", "b"]], id="names"),
        pytest.param([[(0, 224), (1, 224)]], id="index-and-size"),
        pytest.param([[0.0, 1.0]], id="floats"),
        pytest.param([3], id="no-batch-of-indices"),
    ],
)
def test_indices_that_are_no_whole_numbers(batches):
    indexed = IndexedLoader(DataLoader(dict(enumerate("abc")), batch_sampler=batches))
    with pytest.raises(ReplayError, match=r"whole numbers.*replayer\.samples\(ids\)"):
        next(iter(indexed))


def test_a_loader_that_merges_batches_is_refused():
    with pytest.raises(ReplayError, match="read 2 batches before it yielded one that is none"):
        next(iter(IndexedLoader(Merges(Squares(), batch_size=2))))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_skipped_batch_is_not_loaded(workers):
    dataset = Squares()
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=list)
    asked = []
    indexed = IndexedLoader(loader, skip=lambda ids: asked.append(ids) or 4 in ids)
    loaded = list(indexed)
    assert asked == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10)]
    assert [each.ids for each in loaded] == asked
    assert [each.batch is None for each in loaded] == [False, True, False]
    if not workers:
        assert dataset.asked == [0, 1, 2, 3, 8, 9, 10]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_skipped_batch_can_be_loaded_after_all(workers):
    loader = DataLoader(Noisy(), batch_size=4, num_workers=workers, collate_fn=stacked)
    indexed = IndexedLoader(loader, skip=lambda ids: True)
    state = torch.get_rng_state()
    assert indexed.load((3, 1))["sum"].tolist() == [9.0, 10.0]
    # The loader would have drawn here without workers, and only then.
    assert torch.equal(torch.get_rng_state(), state) == (workers > 0)


def test_a_loader_with_its_own_iter_never_skips():
    indexed = IndexedLoader(Scaled(Squares(), batch_size=4), skip=lambda ids: True)
    assert all(loaded.batch is not None for loaded in indexed)
    assert "Scaled has an __iter__ of its own" in indexed.cannot_skip
    assert IndexedLoader(DataLoader(Squares())).cannot_skip is None
