"""Replay of models of which a part is compiled: the bits, and the number of compilations."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from combining import FROZEN, Network, batch, bits, network, sgd
from torch import Tensor, _dynamo, nn
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl

SIZE = 32

pytestmark = [
    # Dynamo's own look at what a live part is given, which in the middle of a model is no leaf.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    # Inductor's own imports.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    _dynamo.reset()
    counters.clear()
    yield
    _dynamo.reset()


class Run(NamedTuple):
    """What is the same with and without replay."""

    losses: list[float]
    bits: dict[str, str]
    graphs: int
    breaks: int


Change = Callable[[Network, str], "Callable[[Tensor], Tensor] | None"]
"""Compiles something of a network, with a backend; what the loop calls, if not the network."""


def run(
    change: Change,
    *,
    replayed: bool,
    backend: str = "eager",
    after: int = 0,
    **options: Any,
) -> tuple[Run, fl.Replayer | None]:
    """Three epochs of three batches and a short one; compiled before the epoch ``after``."""
    _dynamo.reset()
    counters.clear()
    model = network()
    fl.freeze(model, FROZEN)
    called: Callable[[Tensor], Tensor] = model
    optimizer, losses = sgd(model), []
    loader = DataLoader(TensorDataset(*batch(0, size=3 * SIZE + 8)), batch_size=SIZE)
    batches = fl.replay(model, loader, **options) if replayed else None
    for epoch in range(3):
        if epoch == after:
            other = change(model, backend)
            called = called if other is None else other
        for step, (inputs, targets) in enumerate(batches or loader):
            torch.manual_seed(10 * epoch + step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(called(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    seen = Run(
        losses,
        bits(model),
        counters["stats"]["unique_graphs"],
        sum(counters["graph_break"].values()),
    )
    return seen, batches.replayer if batches is not None else None


def both(change: Change, **options: Any) -> fl.Replayer:
    """The replayer of a run that gave what the run without gives."""
    replayed, replayer = run(change, replayed=True, **options)
    assert replayed == plain(change, options.get("backend", "eager"), options.get("after", 0))
    assert replayer is not None
    return replayer


@functools.cache
def plain(change: Change, backend: str, after: int) -> Run:
    """The run without replay."""
    return run(change, replayed=False, backend=backend, after=after)[0]


def head_in_wrapper(model: Network, backend: str) -> None:
    model.blocks[2] = torch.compile(model.blocks[2], backend=backend, fullgraph=True)
    model.head = torch.compile(model.head, backend=backend)


def block_in_place(model: Network, backend: str) -> None:
    model.blocks[2].compile(backend=backend, fullgraph=True)


def called_by_the_loop(model: Network, backend: str) -> Callable[[Tensor], Tensor]:
    block_in_place(model, backend)

    def forward(x: Tensor) -> Tensor:
        x = model.stem(x)
        for block in model.blocks:
            x = block(x)
        return model.head(x)

    return forward


def part_of_a_block(model: Network, backend: str) -> None:
    # Frozen beside trained, all of it in one compiled call.
    model.blocks[2] = torch.compile(Chain(model.blocks[1], model.blocks[2]), backend=backend)
    model.blocks[1] = nn.Identity()


class Chain(nn.Sequential):
    """Of a class of its own, since torch compiles no container of its own."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


def part_with_all_that_is_frozen(model: Network, backend: str) -> None:
    chain = Chain(model.stem, *model.blocks)
    chain.compile(backend=backend)
    model.stem = nn.Identity()
    model.blocks = nn.ModuleList([chain])


@pytest.mark.parametrize(
    ("change", "options"),
    [
        pytest.param(head_in_wrapper, {}, id="wrappers"),
        pytest.param(block_in_place, {}, id="in place"),
        pytest.param(
            block_in_place, {"backend": "aot_eager"}, id="aot_eager", marks=pytest.mark.slow
        ),
        pytest.param(
            head_in_wrapper, {"backend": "inductor"}, id="inductor", marks=pytest.mark.slow
        ),
        pytest.param(called_by_the_loop, {}, id="called by the loop"),
        pytest.param(block_in_place, {"store": "folder"}, id="kept in a folder"),
        pytest.param(block_in_place, {"inputs": "skip"}, id="inputs skipped"),
        pytest.param(part_of_a_block, {}, id="frozen inside what trains"),
        pytest.param(block_in_place, {"after": 2}, id="in place, late"),
        pytest.param(head_in_wrapper, {"after": 2}, id="wrappers, late"),
    ],
)
def test_a_compiled_live_part_is_one_call_that_is_made(
    change: Change, options: dict[str, Any], tmp_path: Path
) -> None:
    if "store" in options:
        options = {**options, "store": tmp_path / options["store"]}
    replayer = both(change, **options)
    assert replayer.declined is None
    assert not replayer.refused
    assert replayer.exact
    assert replayer.stats.replayed >= 6


def frozen_blocks(model: Network, backend: str) -> None:
    model.blocks[0].compile(backend=backend)
    model.blocks[1] = torch.compile(model.blocks[1], backend=backend)


def test_a_frozen_compiled_part_is_computed_every_time() -> None:
    replayer = both(frozen_blocks)
    assert replayer.declined is None  # the stem is replayed
    assert replayer.stats.replayed >= 6
    assert list(replayer.refused) == ["blocks.0", "blocks.1"]
    assert all("rounding=True" in why for why in replayer.refused.values())


@pytest.mark.parametrize(("after", "replayed"), [(0, 6), (1, 4)])
def test_it_is_replayed_where_rounding_is_accepted(after: int, replayed: int) -> None:
    replayer = both(frozen_blocks, after=after, rounding=True)
    assert replayer.stats.replayed >= replayed
    assert not replayer.refused
    assert not replayer.exact  # nobody can promise the same kernels in every epoch
    assert replayer.stats.skipped_share > 0.1


class Counts(nn.Module):
    """Hands its input on, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x


class Draws(nn.Module):
    """Adds nothing, at random."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * random.random()


class Hooked(nn.Identity):
    """Has somebody's hook."""

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda *_: None)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")
@pytest.mark.parametrize(
    ("inner", "why"),
    [
        pytest.param(Counts, "its buffer 'count' changes as it runs", id="buffer"),
        pytest.param(Draws, "it draws random numbers of Python or NumPy", id="random numbers"),
        pytest.param(Hooked, "a hook hangs on it", id="hook"),
    ],
)
def test_what_lies_inside_a_compiled_part_speaks_against_it(
    inner: type[nn.Module], why: str
) -> None:
    model = network()
    model.blocks[0] = nn.Sequential(model.blocks[0], inner())
    fl.freeze(model, FROZEN)
    model.blocks[0].compile(backend="eager")
    replayer = fl.Replayer(model, rounding=True)
    with replayer.samples(range(SIZE)):
        model(batch(0, SIZE)[0])
    assert why in replayer.refused["blocks.0"]


def copy(model: Network, backend: str) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend=backend)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(copy, "the model has not been called for the samples", id="copy"),
        pytest.param(part_with_all_that_is_frozen, "blocks.0 is compiled, so its", id="part"),
    ],
)
def test_what_is_compiled_as_a_whole_runs_as_without_replay(change: Change, why: str) -> None:
    replayer = both(change)
    assert replayer.stats.replayed == 0
    assert why in str(replayer.declined)
    assert "model.head.compile()" in str(replayer.declined)
