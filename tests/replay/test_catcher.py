"""Calls that a loop makes are told from those that a model makes inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from frostline.replay.catcher import Catcher


class Maker:
    """Notes names, and makes the calls."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def call(self, name: str, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.names.append(name)
        return forward(*args, **kwargs)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.head = nn.Linear(2, 2)

    def encode(self, x: Any) -> Any:
        return self.blocks(x)

    def forward(self, x: Any) -> Any:
        return self.head(self.encode(x))


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def maker() -> Maker:
    return Maker()


X = torch.ones(3, 2)


def covered(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_only_calls_of_the_loop_are_top_level(parts: Parts, maker: Maker) -> None:
    catcher = Catcher(parts, maker)
    with catcher.open([]):
        parts(X)
        parts(X)
        parts.head(parts.encode(X))
        parts.blocks[1](X)
    assert maker.names == ["", "", "blocks", "head", "blocks.1"]
    parts(X)
    assert len(maker.names) == 5
    assert covered(parts) == []


def test_what_is_caught_in_later_batches(parts: Parts, maker: Maker) -> None:
    catcher = Catcher(parts, maker)
    everything = ["", "blocks", "blocks.0", "blocks.1", "head"]
    with catcher.open([]):
        assert covered(parts) == everything
        parts(X)
    with catcher.open(["blocks.0", "no-such-module"]):
        assert covered(parts) == ["", "blocks.0"]
        parts(X)
    assert maker.names == ["", ""]
    # None of them is called now: after this batch all are caught again.
    with catcher.open([]):
        parts.blocks(X)
    with catcher.open([]):
        assert covered(parts) == everything
        parts.blocks(X)
    assert maker.names == ["", "", "blocks"]
    with catcher.open([]):
        assert covered(parts) == ["blocks"]


def test_who_makes_what_is_caught_inside(parts: Parts) -> None:
    inside = Maker()

    class Directing(Maker):
        def call(self, *given: Any) -> Any:
            catcher.direct(inside)
            try:
                return super().call(*given)
            finally:
                catcher.direct(None)

    maker = Directing()
    catcher = Catcher(parts, maker)
    with catcher.open([]):
        parts(X)
        parts(X)
    assert maker.names == ["", ""]
    assert inside.names == ["blocks", "blocks.0", "blocks.1", "head"] * 2


def test_more_can_be_caught_while_it_is_open(parts: Parts, maker: Maker) -> None:
    catcher = Catcher(parts, maker)
    with catcher.open([]):
        parts(X)
    with catcher.open([]):
        catcher.cover(["head"])
        assert covered(parts) == ["", "head"]
        catcher.cover(None)
        assert len(covered(parts)) == 5
    assert covered(parts) == []


def test_a_call_that_fails(parts: Parts, maker: Maker) -> None:
    catcher = Catcher(parts, maker)
    with catcher.open([]):
        with pytest.raises(RuntimeError):
            parts(torch.ones(3, 5))
        parts(X)
    assert maker.names == ["", ""]


def test_a_batch_that_fails(parts: Parts, maker: Maker) -> None:
    catcher, other = Catcher(parts, maker), Maker()
    with pytest.raises(KeyError), catcher.open([]):  # noqa: PT012
        catcher.direct(other)
        raise KeyError
    assert covered(parts) == []
    with catcher.open([]):
        parts(X)
    assert (maker.names, other.names) == ([""], [])


def test_what_a_batch_directed_does_not_last(parts: Parts, maker: Maker) -> None:
    catcher, other = Catcher(parts, maker), Maker()
    with catcher.open([]):
        parts(X)
        catcher.direct(other)
    with catcher.open([]):
        parts(X)
    assert (maker.names, other.names) == (["", ""], [])


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_checkpoints_compute_again_is_no_call(
    parts: Parts, maker: Maker, reentrant: bool
) -> None:
    catcher = Catcher(parts, maker)
    x = X.clone().requires_grad_()
    with catcher.open([]):
        loss = checkpoint(parts.blocks, x, use_reentrant=reentrant).sum()
        assert maker.names == ["blocks"]
        loss.backward()
    assert maker.names == ["blocks"]
    assert x.grad is not None


def test_modules_may_be_replaced(parts: Parts, maker: Maker) -> None:
    catcher = Catcher(parts, maker)
    replaced = parts.head
    parts.more = nn.Identity()
    parts.head = nn.Linear(2, 2)
    catcher.refresh()
    with catcher.open([]):
        parts.more(X)
        parts.head(X)
        replaced(X)
    assert maker.names == ["more", "head"]
