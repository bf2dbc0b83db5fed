"""Content that decides between the modules: no replay takes the way of another batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cutting import cut_of
from replaying import CLASSES, WIDTH, freeze
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl

TOKENS = 16
SAMPLES = 64

Way = Callable[[Any, Tensor, bool], Tensor]


def _writes(m: Any, h: Tensor, full: bool) -> Tensor:
    other = m.a(h)
    if full:
        other.add_(1)
    return m.head(m.p(other).mean(1) + other[:, 0])


def _rotates(m: Any, h: Tensor, full: bool) -> Tensor:
    one, other = m.pair(h)
    return m.head(m.p(one if full else other).mean(1))


class _Chunks(nn.Module):
    """Returns two parts of one piece of memory."""

    def forward(self, h: Tensor) -> Any:
        return torch.cat((h, h + 1), dim=-1).chunk(2, dim=-1)


class _Table(nn.Module):
    """Frozen, and with nothing of the batch in it."""

    def forward(self, table: Tensor) -> Tensor:
        return torch.tanh(table * 2)


_WAYS: dict[str, Way] = {
    "another kernel": lambda m, h, full: m.head(m.p(h.mean(1) if full else h.amax(1))),
    "another part": lambda m, h, full: m.head(m.p(h[:, 0] if full else h[:, 1])),
    "another stride": lambda m, h, full: m.head(m.p(h if full else h.transpose(1, 2)).mean(1)),
    "another result": _rotates,
    "another table": lambda m, h, full: m.head(h[:, 0] + m.table(m.one if full else m.other)),
    "written or not": _writes,
    "through another call": lambda m, h, full: m.head(m.q(m.p(h.mean(1) if full else h.amax(1)))),
}


class _Branching(nn.Module):
    """Asks whether any sample of the batch is masked, between two frozen modules."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.p, self.q = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.pair, self.table = _Chunks(), _Table()
        self.one, self.other = (nn.Parameter(torch.randn(WIDTH)) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.way = way

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        h = self.a(x)
        return self.way(self, h, bool(mask.all()))


class _Batches:
    """Four batches an epoch: in each is a masked sample, or all are in one, by the epoch."""

    def __init__(self, apart: int) -> None:
        self.apart, self.epoch = apart, 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[list[int]]:
        self.epoch += 1
        shuffled = torch.Generator().manual_seed(self.epoch)
        masked = torch.randperm(4, generator=shuffled).tolist()
        others = (4 + torch.randperm(SAMPLES - 4, generator=shuffled)).tolist()
        if self.epoch > self.apart:
            yield from (others[start : start + 16] for start in range(0, 48, 16))
            yield [*masked, *others[48:]]
        else:
            yield from ([masked[turn], *others[turn::4]] for turn in range(4))


def _loader(apart: int = 5) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, TOKENS, WIDTH, generator=generator)
    data = TensorDataset(x, torch.arange(SAMPLES)[:, None] >= 4)
    return DataLoader(data, batch_sampler=_Batches(apart))


def _replayed(make: Callable[[], nn.Module], **options: Any) -> Any:
    """See that each batch comes out as without replay; the replayer."""
    model, plain = make(), make()
    freeze(model, "head")
    loader = _loader()
    with torch.no_grad():
        for _ in range(7):
            for given, mask in fl.replay(model, loader, **options):
                assert torch.equal(model(given, mask), plain(given, mask))
    return fl.replay(model, loader, **options).replayer


@pytest.mark.parametrize("name", _WAYS)
def test_no_replay_goes_the_way_of_another_batch(name: str) -> None:
    replayer = _replayed(lambda: _Branching(_WAYS[name]))
    assert replayer.exact
    assert replayer.stats.replayed >= 10, replayer.declined


@pytest.mark.parametrize("name", ["another kernel", "another part"])
def test_inputs_are_not_skipped_where_content_decides_what_is_read(name: str) -> None:
    def made() -> nn.Module:
        model = _Branching(_WAYS[name])
        model.a = nn.Identity()
        return model

    assert _replayed(made, inputs="skip").stats.replayed >= 10


def test_what_content_decides_on_is_kept_and_looked_at() -> None:
    model = _Branching(lambda m, h, full: m.head(m.q(m.p(h[:, 0] if full else h[:, 1]))))
    freeze(model, "head")
    cut = cut_of(model, torch.randn(16, TOKENS, WIDTH), torch.ones(16, 1).bool())
    found = [(str(p.call.place), p.kept, p.parts, p.sources[0].kind) for p in cut.planned]
    assert found == [
        ("a", (True,), (None,), "content"),
        ("p", (False,), (None,), "content"),
        ("q", (True,), (None,), "call"),
    ]
    assert [p.is_chosen for p in cut.planned] == [False, True, False]
    assert cut.needed_inputs == (False, True)


def test_what_is_decided_in_each_batch_anew_is_computed() -> None:
    replayer = _replayed(lambda: _Branching(_WAYS["through another call"]), audit=1.0)
    why = "what it is given is decided by the content of the whole batch"
    assert {str(place): told for place, told in replayer.refused.items()}["p"] == why
    assert replayer.declined is None
