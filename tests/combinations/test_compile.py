"""Freezing and torch.compile: no graph breaks, the same numbers, and phases that are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from combining import FROZEN, Network, bits, loss_of, network, sgd, train
from torch import _dynamo, nn
from torch._dynamo.utils import counters

import frostline as fl


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    _dynamo.reset()
    counters.clear()
    yield
    _dynamo.reset()


def compiled(model: Network, how: str, *, backend: str) -> nn.Module:
    if how == "whole":
        return torch.compile(model, backend=backend, fullgraph=True)  # type: ignore[return-value]
    if how == "in place":
        model.compile(backend=backend, fullgraph=True)
    else:
        for block in model.blocks:
            block.compile(backend=backend, fullgraph=True)
    return model


def before(model: Network, how: str, *, backend: str = "eager") -> nn.Module:
    fl.freeze(model, FROZEN)
    return compiled(model, how, backend=backend)


def after(model: Network, how: str, *, backend: str = "eager") -> nn.Module:
    ready = compiled(model, how, backend=backend)
    loss_of(ready, 9).backward()
    model.zero_grad()
    for block, other in zip(model.blocks, network().blocks, strict=True):
        block.load_state_dict(other.state_dict())  # the statistics have moved
    fl.freeze(ready, FROZEN)
    return ready


# Dynamo's own look at what a block is given, which in the middle of a model is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("how", ["whole", "in place", "blocks"])
@pytest.mark.parametrize("frozen", [before, after])
def test_a_frozen_model_compiles_as_one_graph(
    frozen: Callable[[Network, str], nn.Module], how: str
) -> None:
    plain = network()
    fl.freeze(plain, FROZEN)
    model = network()
    ready = frozen(model, how)
    ready.train()  # what is pinned to eval mode stays there inside of the graph, too
    assert train(ready) == train(plain)
    assert bits(model) == bits(plain)
    assert not counters["graph_break"]


def test_autograd_is_traced_too() -> None:
    plain, model = network(), network()
    fl.freeze(plain, FROZEN)
    assert train(before(model, "whole", backend="aot_eager")) == train(plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # its own imports
def test_inductor_keeps_what_is_frozen() -> None:
    model = network()
    frozen = fl.freeze(model, FROZEN)
    ready = torch.compile(model, fullgraph=True)
    ready.train()
    plain = network()
    fl.freeze(plain, FROZEN)
    # Inductor draws dropout from random numbers of its own.
    for each in (model, plain):
        each.blocks[2].drop.p = 0.0
    assert train(ready) == pytest.approx(train(plain), rel=1e-5)  # type: ignore[arg-type]
    assert frozen.verify().tensors > 0


def test_each_phase_is_one_more_graph_and_the_limit_is_named() -> None:
    """FL603 comes when the next transition would run uncompiled, and a higher limit ends it."""
    model = network()
    ready = torch.compile(model, backend="eager")  # with fullgraph torch raises at the limit
    optimizer = sgd(model)
    graphs, codes = [], []
    for phase in range(4):
        parts = [f"blocks.{place}" for place in range(2) if phase >> place & 1]
        with fl.freeze(model, parts or "stem", gradients="drop"):
            fl.sync(model, optimizer)
            optimizer.zero_grad()
            with _dynamo.config.patch(recompile_limit=3):
                loss_of(ready, phase).backward()
                graphs.append(counters["stats"]["unique_graphs"])
                codes.append([found.code for found in fl.check(ready, optimizer)])
            optimizer.zero_grad()
    assert graphs[:3] == [1, 2, 3]
    assert [("FL603" in found) for found in codes] == [False, False, True, True]
    assert graphs[3] == 3, "the fourth ran without being compiled"
    assert "FL603" not in [found.code for found in fl.check(ready, optimizer)]
