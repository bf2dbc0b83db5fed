"""Several batches of one model that are open at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from replaying import LAST_TWO, Pairs, both, cross_entropy, net
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

import frostline as fl

Order = Callable[[Any, Any], Iterator[Any]]


def _nested(one: Any, other: Any) -> Iterator[Any]:
    for number, batch in enumerate(one()):
        yield batch
        if number == 1:
            yield from other()
            yield batch


def _left_early(one: Any, other: Any) -> Iterator[Any]:
    for batch in one():
        inner = iter(other())
        yield next(inner)
        yield batch
        del inner
        yield batch


def _side_by_side(one: Any, other: Any) -> Iterator[Any]:
    for first, second in zip(one(), other(), strict=True):
        yield second
        yield first


def _turned(rows: list[Any]) -> Any:
    x, y = default_collate(rows)
    return x.flip(1), y


@pytest.mark.parametrize("inputs", ["load", "skip"])
@pytest.mark.parametrize("order", [_nested, _left_early, _side_by_side])
def test_two_batches_of_one_data_set(order: Order, inputs: str) -> None:
    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        unshuffled = DataLoader(loader.dataset, batch_size=8)
        for _ in range(6):
            for batch in order(lambda: batches(loader), lambda: batches(unshuffled)):
                optimizer.zero_grad()
                loss = cross_entropy(model, batch)
                loss.backward()
                optimizer.step()
                yield loss.detach()

    done = both(
        lambda: net(LAST_TWO),
        lambda: DataLoader(Pairs(40), batch_size=8, shuffle=True),
        loop,
        inputs=inputs,
    )
    assert done.replayer.declined is None
    recorded, replayed, plain = done.counts
    assert recorded <= 12  # the first epoch's, at most, though two loops run
    assert replayed >= 40
    assert plain == 0


def test_what_was_left_out_comes_from_its_own_loader() -> None:
    """Another loader of the same data set has another way to make a batch of samples."""
    model, data = net(LAST_TWO).eval(), Pairs(40)
    turned = DataLoader(data, batch_size=8, collate_fn=_turned)
    for epoch in range(5):
        for x, y in fl.replay(model, DataLoader(data, batch_size=8), inputs="skip"):
            where = (data.y.unfold(0, 8, 8) == y).all(1).nonzero()[0].item()
            for other, _ in fl.replay(model, turned, inputs="skip"):
                assert model(other) is not None
                break
            # It asks for the field that was left out, if it was.
            true = data.x[8 * where : 8 * where + 8]
            with torch.no_grad():
                assert torch.equal(model(x), model(true)), epoch


def test_samples_inside_a_batch() -> None:
    model, data = net(LAST_TWO).eval(), Pairs(40)
    loader = DataLoader(data, batch_size=8)
    reference = net(LAST_TWO).eval()
    for _ in range(3):
        replay = fl.replay(model, loader)
        for x, _ in replay:
            with replay.replayer.samples(range(8)):
                assert torch.equal(model(data.x[:8]), reference(data.x[:8]))
            assert torch.equal(model(x), reference(x))
    assert replay.replayer.stats.replayed >= 10


def test_each_loops_over_its_own_loader() -> None:
    """A training and a validation loader may be shares of one data set."""
    model, data = net(LAST_TWO).eval(), Pairs(40)
    shares = [DataLoader(data, batch_size=8, sampler=half) for half in (range(24), range(24, 40))]
    one, other = (fl.replay(model, share) for share in shares)
    assert one.replayer is other.replayer
    assert torch.equal(torch.cat([x for x, _ in one]), data.x[:24])
    assert torch.equal(torch.cat([x for x, _ in other]), data.x[24:])
