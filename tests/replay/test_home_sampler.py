"""A sampler under which each rank keeps its samples."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import DataLoader, DistributedSampler

from frostline.errors import ReplayError
from frostline.replay import HomeSampler
from frostline.replay.epoch_ends import is_dealt


def ranks(count: int, **options: Any) -> list[HomeSampler]:
    return [HomeSampler(range(count), num_replicas=3, rank=rank, **options) for rank in range(3)]


@pytest.mark.parametrize(
    ("count", "drop_last", "length", "drawn"),
    [(9, False, 3, 9), (10, False, 4, 10), (10, True, 3, 9), (11, False, 4, 11), (3, True, 1, 3)],
)
def test_shares_are_equally_long(count: int, drop_last: bool, length: int, drawn: int) -> None:
    shares = [list(sampler) for sampler in ranks(count, drop_last=drop_last)]
    assert [len(share) for share in shares] == [length] * 3
    assert len(set().union(*shares)) == drawn
    assert sum(len(set(share)) for share in shares) == drawn  # none is on two ranks


def test_a_rank_keeps_its_share_in_another_order() -> None:
    sampler = ranks(30)[1]
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert set(orders[0]) == set(orders[1])


def test_the_seed_decides_on_the_shares() -> None:
    one, same, other = (set(ranks(30, seed=seed)[0]) for seed in (4, 4, 5))
    assert one == same != other


def test_without_shuffling_every_epoch_is_the_same() -> None:
    sampler = ranks(30, shuffle=False)[0]
    before = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == before


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (9, {"num_replicas": 3, "rank": 3}, "rank counts from 0 to num_replicas - 1 = 2, got 3"),
        (2, {"num_replicas": 3, "rank": 0}, "2 samples can't be dealt to 3 ranks"),
    ],
)
def test_wrong_arguments(count: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(ReplayError, match=message):
        HomeSampler(range(count), **options)


def test_alone_it_has_all() -> None:
    assert sorted(HomeSampler(range(5))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("sampler", "dealt"),
    [
        (None, False),
        (DistributedSampler(range(8), 2, 0), True),
        (DistributedSampler(range(8), 1, 0), False),
        (HomeSampler(range(8), num_replicas=2, rank=0), False),
    ],
    ids=["none", "distributed", "one rank", "home"],
)
def test_who_waits_for_others(sampler: Any, dealt: bool) -> None:
    assert is_dealt(DataLoader(range(8), batch_size=2, sampler=sampler)) is dealt
