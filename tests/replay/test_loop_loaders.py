"""Several loaders of one model, and what ``fl.replay`` gives and leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from replaying import (
    HEAD,
    Pairs,
    both,
    cross_entropy,
    net,
    shuffled,
    step,
    two,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

import frostline as fl


def _second(seed: int | None) -> DataLoader[Any]:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(Pairs(40, seed=9), batch_size=8, shuffle=True, generator=generator)


def _alternating(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    other = _second(None)
    for _ in range(4):
        model.train()
        for given in (loader, other):
            for batch in batches(given):
                yield step(model, optimizer, batch)


def test_two_loaders_in_turn() -> None:
    done = both(two, shuffled, _alternating)
    assert [r.replayer.stats.replayed for r in done.replays] == [15, 15]
    assert [r.replayer.stats.recorded for r in done.replays] == [5, 5]


def test_iterating_draws_from_the_generators_when_the_loader_would() -> None:
    def loop(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for _ in range(3):
            iterator = iter(batches(loader))
            yield torch.rand(2)
            for batch in iterator:
                yield step(model, optimizer, batch)

    assert both(two, shuffled, loop).counts == (5, 10, 0)


@pytest.mark.parametrize("inputs", ["load", "skip"])
def test_two_loaders_at_once(inputs: str) -> None:
    def loop(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        other = _second(4)
        for _ in range(4):
            model.train()
            for batch, also in zip(batches(loader), batches(other), strict=True):
                optimizer.zero_grad()
                loss = cross_entropy(model, batch) + cross_entropy(model, also)
                loss.backward()
                optimizer.step()
                yield loss.detach()

    def first() -> DataLoader[Any]:
        return shuffled(generator=torch.Generator().manual_seed(3))

    done = both(two, first, loop, inputs=inputs)
    assert all(replay.replayer.declined is None for replay in done.replays)


def test_one_loader_of_the_same_data_takes_over_from_another() -> None:
    data = Pairs(40)

    def loop(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for _ in range(3):
            model.train()
            for batch in batches(DataLoader(data, batch_size=8, shuffle=True)):
                yield step(model, optimizer, batch)

    done = both(two, shuffled, loop)
    assert len({id(replay.replayer) for replay in done.replays}) == 1
    assert done.counts == (5, 10, 0)


def test_batches_and_length_are_the_loaders() -> None:
    model, loader = net(HEAD), DataLoader(Pairs(20), batch_size=8)
    replay = fl.replay(model, loader)
    assert len(replay) == len(loader) == 3
    for (x, y), (given_x, given_y) in zip(loader, replay, strict=True):
        assert torch.equal(x, given_x)
        assert torch.equal(y, given_y)
    assert fl.replay(model, loader) is replay


def test_a_copy_of_the_model_begins_anew() -> None:
    model, loader = net(HEAD), shuffled()
    replay = fl.replay(model, loader)
    for batch in replay:
        cross_entropy(model, batch)
    other = copy.deepcopy(model)
    assert fl.replay(other, loader) is not replay
    assert fl.replay(other, loader).replayer.stats.recorded == 0


def test_the_model_is_as_it_was_afterwards() -> None:
    model = net(HEAD)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    hooks = {name: len(m._forward_hooks) for name, m in model.named_modules()}
    for _ in range(3):
        for batch in fl.replay(model, shuffled()):
            cross_entropy(model, batch)
    after = {name: set(vars(module)) for name, module in model.named_modules()}
    after[""].discard("_frostline_replays")
    assert after == before
    assert {name: len(m._forward_hooks) for name, m in model.named_modules()} == hooks
