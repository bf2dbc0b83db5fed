"""Batches in whatever form a loader gives them, and padded to whatever length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from replaying import (
    CLASSES,
    LAST_TWO,
    WIDTH,
    Block,
    Net,
    both,
    cross_entropy,
    freeze,
    shuffled,
    two,
    with_loss,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader


@dataclasses.dataclass
class _Record:
    x: Tensor
    y: Tensor


class _Named(NamedTuple):
    x: Tensor
    y: Tensor


def _stacked(items: Any) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


_BATCHES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "dict": (
        lambda items: dict(zip("xy", _stacked(items), strict=True)),
        lambda b: (b["x"], b["y"]),
    ),
    "list": (lambda items: list(_stacked(items)), tuple),
    "named-tuple": (lambda items: _Named(*_stacked(items)), tuple),
    "dataclass": (lambda items: _Record(*_stacked(items)), lambda b: (b.x, b.y)),
    "nested": (
        lambda items: {"in": _stacked(items), "names": ["a"] * len(items)},
        lambda b: b["in"],
    ),
}


@pytest.mark.parametrize("inputs", ["load", "skip"])
@pytest.mark.parametrize("name", _BATCHES)
def test_batches(name: str, inputs: str) -> None:
    collate, open_batch = _BATCHES[name]
    done = both(
        two,
        lambda: shuffled(collate_fn=collate),
        with_loss(lambda model, batch: cross_entropy(model, open_batch(batch))),
        inputs=inputs,
    )
    assert done.counts == (5, 10, 0)


class _Takes(Net):
    """Gets its inputs in a dataclass."""

    def forward(self, given: _Record) -> Tensor:
        return super().forward(given.x)


def test_a_dataclass_as_the_model_takes_it() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        model = _Takes()
        freeze(model, LAST_TWO)
        return model

    def loss_of(model: Any, batch: _Record) -> Tensor:
        return functional.cross_entropy(model(batch), batch.y)

    done = both(
        make,
        lambda: shuffled(collate_fn=lambda items: _Record(*_stacked(items))),
        with_loss(loss_of),
    )
    assert done.counts == (5, 10, 0)


class _Sentences(torch.utils.data.Dataset):
    """Sequences of three to six words."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.words = [torch.randint(1, 20, (int(n),)) for n in torch.randint(3, 7, (40,))]
        self.y = torch.randint(CLASSES, (40,))

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.words[index], self.y[index]


def _padded(items: Any) -> tuple[Tensor, Tensor]:
    words = [words for words, _ in items]
    return nn.utils.rnn.pad_sequence(words, batch_first=True), torch.stack([y for _, y in items])


class _Reader(nn.Module):
    """Blocks over words, and a mean over those that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids != 0)[..., None]
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return self.head((x * there).sum(1) / there.sum(1))


@pytest.mark.parametrize("inputs", ["load", "skip"])
def test_padding_that_differs_from_batch_to_batch(inputs: str) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        model = _Reader()
        freeze(model, LAST_TWO)
        return model

    done = both(
        make,
        lambda: DataLoader(_Sentences(), batch_size=4, shuffle=True, collate_fn=_padded),
        with_loss(cross_entropy, epochs=8),
        inputs=inputs,
    )
    assert done.replayer.declined is None
    assert done.counts[1] >= 30  # of 80; a sample is known in each length that it came in
