"""Ids, shares, stores and models that are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from replaying import LAST_TWO, WIDTH, Pairs, both, net, steps
from torch import nn
from torch.utils.data import DataLoader

import frostline as fl


def _loader(data: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(data or Pairs(40), **{"batch_size": 8, "shuffle": True, **options})


# Ids.


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([0.0, 1.0]),
        [0.5, 1.0],
        torch.tensor([[0, 1]]),
        torch.tensor(3),
        torch.tensor([True, False]),
        3,
        None,
        ["a", "b"],
        [2**70, 1],
    ],
    ids=[
        "floats",
        "list-of-floats",
        "two-dimensions",
        "scalar",
        "flags",
        "one",
        "none",
        "names",
        "huge",
    ],
)
def test_ids_that_are_none(ids: Any) -> None:
    model = net()
    replayer = fl.Replayer(model)
    with pytest.raises(fl.ReplayError, match="whole number"), replayer.samples(ids):
        model(torch.ones(2, WIDTH))
    with replayer.samples([0, 1]):  # nothing is left open
        model(torch.ones(2, WIDTH))


@pytest.mark.parametrize("ids", [[], torch.empty(0, dtype=torch.long)])
def test_no_ids(ids: Any) -> None:
    model = net().eval()
    replayer = fl.Replayer(model)
    with replayer.samples(ids):
        model(torch.ones(2, WIDTH))
    assert replayer.stats.recorded == 0


@pytest.mark.parametrize("count", [3, 5, 16])
def test_more_or_fewer_ids_than_samples(count: int) -> None:
    model = net().eval()
    replayer = fl.Replayer(model)
    torch.manual_seed(0)
    for _ in range(4):
        for start in (0, 8):
            x = torch.randn(8, WIDTH)
            with replayer.samples(range(start, start + count)):
                assert torch.equal(model(x), model.head(model.encode(x)))
    assert replayer.stats.replayed == 0


def test_ids_of_other_samples_each_time() -> None:
    """Ids that name places in the batch, not samples: what is replayed is right all the same."""
    model, data = net().eval(), Pairs(40)
    replayer = fl.Replayer(model)
    for _ in range(4):
        for chosen in torch.randperm(40).split(8):
            with replayer.samples(range(8)):
                given = model(data.x[chosen])
            assert torch.equal(given, model(data.x[chosen]))
    assert "ids that do not name the same sample each time" in str(replayer.declined)


def test_a_batch_inside_a_batch() -> None:
    model = net()
    replayer = fl.Replayer(model)
    with (
        replayer.samples([0, 1]),
        pytest.raises(fl.ReplayError, match="one batch at a time"),
        replayer.samples([2, 3]),
    ):
        pass
    with replayer.samples([0, 1]):
        model(torch.ones(2, WIDTH))


# Arguments.


@pytest.mark.parametrize("audit", [-0.1, 1.5, float("nan"), "often"])
def test_audits_out_of_range(audit: Any) -> None:
    with pytest.raises(fl.ReplayError, match="audit is a share from 0 to 1"):
        fl.Replayer(net(), audit=audit)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"inputs": "none"}, 'inputs is "load" or "skip", got \'none\''),
        ({"audit": 2}, "audit is a share"),
        ({"views": 0}, "views is how many variants"),
        ({"views": True}, "views is how many variants"),
        ({"store": 3}, 'a store is "memory", a folder'),
        ({"store": ""}, "an empty path names neither"),
        ({"budget": -1}, "budget is a number of bytes"),
    ],
)
def test_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(fl.ReplayError, match=match):
        fl.replay(net(), _loader(), **options)


@pytest.mark.parametrize("model", [None, "model", nn.Linear, torch.ones(2)])
def test_something_else_than_a_model(model: Any) -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        fl.Replayer(model)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        fl.replay(model, _loader())


def test_calling_again_with_other_arguments_begins_anew() -> None:
    model, loader = net(), _loader()
    first = fl.replay(model, loader)
    assert fl.replay(model, loader, audit=0.5) is not first
    assert fl.replay(model, loader) is first


def test_a_budget_is_kept() -> None:
    with pytest.warns(Warning, match="budget|full|limit"):
        done = both(lambda: net(LAST_TWO), _loader, lambda *g: steps(*g, epochs=4), budget=1000)
    assert done.replayer.stats.bytes <= 1000
