from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from frostline.errors import ReplayError
from frostline.replay.loading import IndexedLoader

SIZE = 11


class Quiet(Dataset):
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"number": index}


class Noisy(Quiet):
    """Draws from every generator there is."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = {"torch": torch.rand(2), "random": random.random(), "numpy": numpy.random.rand()}
        return {"number": index, **drawn}


class AtOnce(Quiet):
    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


@pytest.mark.parametrize("views", [0, -1, 2.0, True])
def test_views_must_be_a_number(views):
    with pytest.raises(ReplayError, match="how many variants"):
        IndexedLoader(DataLoader(Quiet()), views=views)


def views_of(workers: int, epochs: int, views: int = 3) -> dict[int, list[Any]]:
    """Every epoch's samples by id."""
    options = {"num_workers": workers, "shuffle": True, "collate_fn": list, "batch_size": 4}
    indexed = IndexedLoader(DataLoader(Noisy(), **options), views=views)
    found: dict[int, list[Any]] = {}
    for _ in range(epochs):
        for loaded in indexed:
            for identity, sample in zip(loaded.ids, loaded.batch, strict=True):
                assert sample["number"] == identity // views
                found.setdefault(identity, []).append(sample)
    return found


def test_every_view_is_the_same_bits_in_every_epoch_and_worker():
    here, there = views_of(workers=0, epochs=6), views_of(workers=2, epochs=3)
    assert sorted(here) == sorted(there) == list(range(3 * SIZE))
    for identity, samples in here.items():
        first, again = samples  # each of three views twice in six epochs
        assert torch.equal(first["torch"], again["torch"])
        assert (first["random"], first["numpy"]) == (again["random"], again["numpy"])
        assert torch.equal(first["torch"], there[identity][0]["torch"])
        assert first["random"] == there[identity][0]["random"]
        assert first["numpy"] == there[identity][0]["numpy"]


def test_views_differ_from_each_other():
    drawn = {tuple(samples[0]["torch"].tolist()) for samples in views_of(0, 3).values()}
    assert len(drawn) == 3 * SIZE


def test_views_leave_the_loops_random_numbers_alone():
    def states(dataset: Dataset, views: int | None) -> Any:
        torch.manual_seed(0)
        random.seed(0)
        numpy.random.seed(0)
        list(IndexedLoader(DataLoader(dataset, batch_size=4, shuffle=True), views=views))
        return torch.get_rng_state(), random.getstate(), list(numpy.random.get_state()[1])

    seeded, quiet = states(Noisy(), 2), states(Quiet(), None)
    assert torch.equal(seeded[0], quiet[0])
    assert seeded[1:] == quiet[1:]


def test_a_view_can_be_loaded_by_its_id():
    indexed = IndexedLoader(DataLoader(Noisy(), batch_size=4, collate_fn=list), views=3)
    first = next(iter(indexed))
    for loaded, sample in zip(indexed.load(first.ids), first.batch, strict=True):
        assert loaded["number"] == sample["number"]
        assert torch.equal(loaded["torch"], sample["torch"])


def test_views_of_a_dataset_that_gives_several_at_once():
    indexed = IndexedLoader(DataLoader(AtOnce(), batch_size=4, collate_fn=list), views=2)
    assert [sample["number"] for sample in next(iter(indexed)).batch] == [0, 1, 2, 3]
