"""Tensors that were made in inference mode: autograd counts no writes to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from replaying import HEAD, WIDTH, Block, Net, Pairs, both, freeze, net, steps
from torch import Tensor
from torch.utils.data import DataLoader

from frostline.replay.contents import Contents
from frostline.replay.deep import deep_mark


class _Cached(Block):
    """Makes a table when it is first called, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.tables: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(WIDTH) / WIDTH
            self.tables.append(torch.ones(WIDTH))  # that it is read is not needed
        return super().forward(x + self.table)


def _first_evaluated() -> Net:
    torch.manual_seed(0)
    model = Net()
    model.blocks[0] = _Cached()
    freeze(model, HEAD)
    with torch.inference_mode():
        model.eval()(torch.ones(8, WIDTH))
    assert model.blocks[0].table.is_inference()
    return model


def _with_buffer() -> Net:
    model = net(HEAD)
    with torch.inference_mode():
        model.blocks[1].register_buffer("table", torch.ones(3), persistent=False)
    return model


def _frozen_in_inference_mode() -> Net:
    model = net(HEAD)
    with torch.inference_mode():
        for block in model.blocks:
            for name, parameter in list(block.norm.named_parameters()):
                setattr(block.norm, name, torch.nn.Parameter(parameter.clone(), False))
    assert model.blocks[0].norm.weight.is_inference()
    return model


def _loader() -> DataLoader[Any]:
    return DataLoader(Pairs(40), batch_size=8, shuffle=True)


@pytest.mark.parametrize("make", [_first_evaluated, _with_buffer, _frozen_in_inference_mode])
def test_they_may_be_anywhere(make: Callable[[], Net]) -> None:
    assert both(make, _loader).counts == (5, 10, 0)


def _write_table(model: Any) -> None:
    model.blocks[0].table.mul_(2)


def _write_listed(model: Any) -> None:
    model.blocks[0].tables[0].mul_(2)


def _write_weight(model: Any) -> None:
    model.blocks[0].norm.weight.mul_(2)


@pytest.mark.parametrize(
    ("make", "write"),
    [
        (_first_evaluated, _write_table),
        (_first_evaluated, _write_listed),
        (_frozen_in_inference_mode, _write_weight),
    ],
)
def test_what_is_written_to_them_is_seen(make: Any, write: Callable[[Any], None]) -> None:
    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        yield from steps(model, optimizer, loader, batches)
        with torch.inference_mode():
            write(model)
        yield from steps(model, optimizer, loader, batches)

    # A warning is an error: an attribute is compared at once, a weight once a round.
    done = both(make, _loader, loop)
    assert done.counts[1] >= 10


def test_their_content_is_compared() -> None:
    with torch.inference_mode():
        table = torch.ones(3)
    contents, mark = Contents([[table]]), deep_mark([table])
    assert contents.are_as_before()
    assert deep_mark([table]) == mark
    with torch.inference_mode():
        table[1] = 2
    assert not contents.are_as_before()
    assert deep_mark([table]) != mark
