"""The pass that is traced is not computed twice; and what an earlier run recorded is held to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from replaying import (
    CLASSES,
    HEAD,
    LAST_TWO,
    WIDTH,
    Block,
    Pairs,
    assert_same,
    both,
    freeze,
    net,
    run,
    steps,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from frostline.replay import making
from frostline.replay.captured import Captured


def _loader() -> DataLoader[Any]:
    return DataLoader(Pairs(40), batch_size=8, shuffle=True)


def _epoch(*given: Any) -> Any:
    return steps(*given, epochs=1)


class _Collects(nn.Module):
    """Leaves what it made in an attribute, for the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.lower(x).tanh()
        self.seen = hidden.detach()
        return self.head(hidden)


def _collects() -> nn.Module:
    torch.manual_seed(0)
    model = _Collects()
    freeze(model, "head")
    return model


class _InPlace(nn.Module):
    """Live code writes into what the frozen part gave."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.lower(x)
        hidden.mul_(self.head.weight.detach().mean())
        return self.head(hidden)


def _in_place() -> nn.Module:
    torch.manual_seed(0)
    model = _InPlace()
    freeze(model, "head")
    return model


_MODELS: dict[str, tuple[Any, bool]] = {
    "head": (lambda: net(HEAD), True),
    "last-two": (lambda: net(LAST_TWO), True),
    "leaves-an-attribute": (_collects, False),
    "writes-into-it": (_in_place, False),
}


@pytest.mark.parametrize("name", _MODELS)
def test_the_first_pass_takes_its_values_from_the_trace(name: str) -> None:
    make, is_taken = _MODELS[name]
    taken = []

    def first_pass(*given: Any) -> Any:
        made = making_first_pass(*given)
        taken.append(made is not None)
        return made

    making_first_pass = making.first_pass
    with mock.patch.object(making, "first_pass", first_pass):
        done = both(make, _loader)
    assert any(taken) == is_taken
    assert sum(done.counts) == 15
    assert done.counts[1] >= 7


def test_what_is_too_large_is_computed_twice() -> None:
    captured = Captured()
    with mock.patch("frostline.replay.captured._MOST_BYTES", 100):
        captured.add(3, [torch.zeros(20)])
        captured.add(4, [torch.zeros(20)])
        captured.add(5, [torch.zeros(1)])
    assert [captured.tensors(index) for index in (3, 4, 5)] == [None, None, None]


def test_edited_code_finds_nothing_of_the_earlier_run(tmp_path: Path) -> None:
    run(net, _loader, replayed=True, store=tmp_path)

    def forward(self: Block, x: Tensor) -> Tensor:
        return self.norm(x + 2 * self.drop(self.fc2(torch.tanh(self.fc1(x)))))

    with mock.patch.object(Block, "forward", forward):
        plain = run(net, _loader, _epoch, replayed=False)
        again = run(net, _loader, _epoch, replayed=True, store=tmp_path)
    assert_same(plain, again)
    assert again.counts == (5, 0, 0)


def test_code_elsewhere_is_found_to_be_edited_by_the_first_batch(tmp_path: Path) -> None:
    run(net, _loader, replayed=True, store=tmp_path)
    with mock.patch("torch.tanh", torch.sigmoid):
        plain = run(net, _loader, _epoch, replayed=False)
        again = run(net, _loader, _epoch, replayed=True, store=tmp_path)
    assert_same(plain, again)
    assert again.replayer.stats.compared >= 1
    assert again.replayer.stats.replayed == 0


@pytest.mark.parametrize("keep_as", [torch.bfloat16, torch.float16])
def test_narrower_values_take_half_the_bytes_and_are_not_exact(
    keep_as: torch.dtype, tmp_path: Path
) -> None:
    exact = run(net, _loader, replayed=True)
    narrow = run(net, _loader, replayed=True, keep_as=keep_as)
    assert narrow.counts == exact.counts == (5, 10, 0)
    assert (exact.replayer.exact, narrow.replayer.exact) == (True, False)
    assert narrow.replayer.stats.bytes < 0.8 * exact.replayer.stats.bytes
    torch.testing.assert_close(
        torch.stack(narrow.losses), torch.stack(exact.losses), rtol=0.02, atol=0.02
    )
    assert not torch.equal(torch.stack(narrow.losses), torch.stack(exact.losses))
    # In a folder what is narrower is not taken for what is not.
    run(net, _loader, replayed=True, store=tmp_path, keep_as=keep_as)
    assert run(net, _loader, _epoch, replayed=True, store=tmp_path).counts == (5, 0, 0)
    again = run(net, _loader, _epoch, replayed=True, store=tmp_path, keep_as=keep_as)
    assert again.counts == (0, 5, 0)
    assert not again.replayer.exact


def test_rounding_that_was_not_needed_is_exact() -> None:
    done = both(net, _loader, rounding=True)
    assert done.counts == (5, 10, 0)
    assert done.replayer.exact
