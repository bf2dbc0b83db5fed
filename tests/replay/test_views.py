"""Random augmentation with K fixed variants of each sample."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from replaying import HEAD, LAST_TWO, WIDTH, Pairs, assert_same, net, run, steps
from torch.utils.data import DataLoader

import frostline as fl


class _Augmented(Pairs):
    """Draws from all generators there are."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        x = x + 0.1 * torch.randn(WIDTH)
        x = x * random.uniform(0.9, 1.1) + float(np.random.rand()) * 0.1
        return x, y


def _loader(size: int = 40, **options: Any) -> DataLoader[Any]:
    return DataLoader(_Augmented(size), **{"batch_size": 8, "shuffle": True, **options})


def _seen(model: Any, loader: Any, epochs: int, **options: Any) -> list[torch.Tensor]:
    """What each epoch's batches held, in the order of the samples."""
    given = []
    for _ in range(epochs):
        replay = fl.replay(model, loader, **options)
        given.append(torch.cat([x for x, _ in replay]))
    return given


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_each_view_comes_back(views: int, workers: int) -> None:
    loader = _loader(shuffle=False, num_workers=workers)
    epochs = _seen(net(), loader, 2 * views, views=views)
    for epoch in range(views):
        assert torch.equal(epochs[epoch], epochs[epoch + views])
    for epoch in range(1, views):
        assert not (epochs[0] == epochs[epoch]).all(1).any()


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("trains", [HEAD, LAST_TWO], ids=["head", "two"])
def test_views_are_replayed(trains: Any, views: int) -> None:
    epochs = 2 * views + 1
    done = run(
        lambda: net(trains),
        _loader,
        lambda *given: steps(*given, epochs=epochs),
        replayed=True,
        views=views,
    )
    assert done.replayer.declined is None
    recorded, replayed, plain = done.counts
    assert plain == 0
    assert recorded + replayed == 5 * epochs
    assert replayed >= 5 * (views + 1)


@pytest.mark.parametrize("inputs", ["load", "skip"])
@pytest.mark.parametrize("workers", [0, 2])
def test_replayed_views_give_the_bits_that_computing_them_gives(workers: int, inputs: str) -> None:
    def train(**options: Any) -> Any:
        return run(
            lambda: net(LAST_TWO),
            lambda: _loader(num_workers=workers),
            lambda *given: steps(*given, epochs=5),
            replayed=True,
            views=2,
            **options,
        )

    # An audit of every batch computes all of them.
    audited = train(audit=1.0)
    assert_same(audited, train(inputs=inputs))
    assert audited.replayer.stats.compared == audited.replayer.stats.replayed


def test_one_view_of_plain_data_is_the_data() -> None:
    def train(**options: Any) -> Any:
        return run(
            lambda: net(LAST_TWO),
            lambda: DataLoader(Pairs(40), batch_size=8, shuffle=True),
            replayed=True,
            **options,
        )

    assert_same(train(views=1), train())


def test_views_of_the_next_run_are_found_in_the_folder(tmp_path: Any) -> None:
    def train() -> Any:
        return run(
            lambda: net(LAST_TWO),
            _loader,
            lambda *given: steps(*given, epochs=2),
            replayed=True,
            views=2,
            store=tmp_path,
        )

    assert train().counts == (10, 0, 0)
    again = train()
    assert again.counts[1] >= 8


def test_the_loops_own_random_numbers_are_not_touched() -> None:
    model = net()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    for _ in fl.replay(model, _loader(shuffle=False), views=2):
        pass
    drawn = (torch.rand(1).item(), random.random(), float(np.random.rand()))
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    for _ in DataLoader(Pairs(40), batch_size=8):
        pass
    assert drawn == (torch.rand(1).item(), random.random(), float(np.random.rand()))


def test_a_loop_that_augments_behind_the_frozen_part() -> None:
    def loss_of(model: Any, batch: Any) -> torch.Tensor:
        x, y = batch
        hidden = model.encode(x)
        return torch.nn.functional.cross_entropy(
            model.head(hidden + 0.1 * torch.randn_like(hidden)), y
        )

    def train(*, replayed: bool) -> Any:
        return run(
            lambda: net(HEAD),
            lambda: DataLoader(Pairs(40), batch_size=8, shuffle=True),
            lambda *given: steps(*given, loss_of=loss_of),
            replayed=replayed,
        )

    done = train(replayed=True)
    assert_same(train(replayed=False), done)
    assert done.counts[1] == 40  # four blocks, two epochs of five batches
