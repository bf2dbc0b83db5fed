from __future__ import annotations

import pytest

from frostline.finetune.loading import Batches, epoch_seed


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [
        pytest.param(6, 3, [3, 3], id="even"),
        pytest.param(8, 3, [3, 3, 2], id="rest"),
        pytest.param(7, 3, [3, 4], id="a-single-one-joins"),
        pytest.param(1, 3, [1], id="only-one"),
        pytest.param(3, 1, [1, 1, 1], id="one-by-one"),
        pytest.param(2, 9, [2], id="fewer-than-a-batch"),
    ],
)
def test_batches_hold_each_position_once(count, size, sizes):
    batches = Batches(count, size, seed=0)
    parts = list(batches)
    assert [len(part) for part in parts] == sizes
    assert sorted(place for part in parts for place in part) == list(range(count))
    assert len(batches) == len(sizes)


@pytest.mark.parametrize("count", [1, 5, 8, 9, 13])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_samples(count, ranks):
    train = [Batches(count, 2, seed=3, rank=rank, ranks=ranks) for rank in range(ranks)]
    # Each step is made by all of them together.
    assert len({tuple(map(len, batches)) for batches in train}) == 1
    assert [len(batches) for batches in train] == [len(list(batches)) for batches in train]
    drawn = [place for batches in train for batch in batches for place in batch]
    assert set(drawn) == set(range(count))
    assert len(drawn) < count + ranks
    others = [Batches(count, 2, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert [len(batches) for batches in others] == [len(list(batches)) for batches in others]
    scored = [place for batches in others for batch in batches for place in batch]
    assert sorted(scored) == list(range(count))


def test_the_order_is_another_in_each_epoch_and_the_same_again():
    batches = Batches(50, 8, seed=1)
    first = list(batches)
    batches.epoch = 2
    second = list(batches)
    batches.epoch = 1
    assert list(batches) == first != second


def test_seeds_of_neighbours_differ_and_fit_torch():
    seeds = {epoch_seed(s, e, r) for s in range(20) for e in range(20) for r in range(2)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
