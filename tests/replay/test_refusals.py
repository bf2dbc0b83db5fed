"""What can't be replayed safely is computed, with a reason that names the module and a way out."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from refusing import Body, Stack, hooked, hooked_inside, leaves, loader, made, plain
from replaying import CLASSES, WIDTH, Pairs, both, run, steps
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

import frostline as fl


class _Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x * self.seen


class _Opaque:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class _Unpacks(Stack):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).x)


class _ReadsInside(Stack):
    """Uses a value that the body has left on itself."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(self.stem(x))
        return self.head(out + self.body.left)


def _counts(body: Body, x: Tensor) -> Tensor:
    body.calls += 1
    return plain(body, x) * body.calls


def _lists(body: Body, x: Tensor) -> Tensor:
    body.seen.append(len(x))
    return plain(body, x)


class _Experts(nn.Module):
    """Each sample goes to one of two experts, which take theirs all at once."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 2)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x).argmax(1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            out[mine] = expert(x[mine])
        return out


def _moving_statistics() -> dict[str, Any]:
    return {"norm": nn.BatchNorm1d(WIDTH)}


# The body is refused and the stem before it is replayed: model → the reason.
_REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout": (
        made(
            lambda b, x: b.drop(plain(b, x)),
            lambda: {"drop": nn.Dropout(0.2)},
            pin_eval=False,
        ),
        "draws random numbers",
    ),
    "functional-dropout": (
        made(lambda b, x: functional.dropout(plain(b, x), 0.2, training=True)),
        "draws random numbers",
    ),
    "noise": (made(lambda b, x: plain(b, x) + torch.randn_like(x)), "draws random numbers"),
    "noise-of-an-own-generator": (
        made(
            lambda b, x: plain(b, x) + torch.randn(x.shape, generator=b.own),
            lambda: {"own": torch.Generator().manual_seed(3)},
        ),
        "draws random numbers",
    ),
    "python-random": (
        made(lambda b, x: plain(b, x) * random.random()),
        "random numbers of Python",
    ),
    "numpy-random": (
        made(lambda b, x: plain(b, x) * float(np.random.rand())),
        "random numbers of Python or NumPy",
    ),
    "random-mask": (
        made(lambda b, x: plain(b, x) * torch.bernoulli(torch.full_like(x, 0.9))),
        "draws random numbers",
    ),
    "batch-statistics": (
        made(
            lambda b, x: b.norm(plain(b, x)),
            _moving_statistics,
            pin_eval=False,
            hold_statistics=False,
        ),
        "'body.norm.num_batches_tracked' as it runs",
    ),
    "in-batch-contrast": (
        made(lambda b, x: plain(b, x) - x.mean(0)),
        "depend on the rest of the batch",
    ),
    "softmax-over-the-batch": (
        made(lambda b, x: plain(b, x).softmax(0)),
        "depend on the rest of the batch",
    ),
    "place-in-the-batch": (
        made(lambda b, x: plain(b, x) + torch.arange(len(x))[:, None]),
        "depend on the rest of the batch, or on the place in it",
    ),
    "moving-buffer": (
        made(lambda b, x: b.counts(plain(b, x)), lambda: {"counts": _Counts()}),
        r"'(body\.counts\.)?seen' (changes )?as it runs|changes as it runs",
    ),
    "branch-on-content": (
        made(lambda b, x: plain(b, x) * (1 if x.sum() > 0 else 2)),
        "branches on content",
    ),
    "item": (made(lambda b, x: plain(b, x) * x.mean().item()), "branches on content"),
    "tolist": (made(lambda b, x: plain(b, x) * x.tolist()[0][0]), "branches on content"),
    "numpy": (
        made(lambda b, x: plain(b, x) * float(x.detach().numpy()[0, 0])),
        "branches on content",
    ),
    "hook": (made(then=hooked), "a hook hangs on it"),
    "hook-inside": (made(then=hooked_inside), "a hook hangs on it"),
    "side-channel": (made(leaves, kind=_ReadsInside), "used outside, past its output"),
    "opaque-output": (
        made(lambda b, x: _Opaque(plain(b, x)), kind=_Unpacks),
        "no tensor|can't be made anew",
    ),
    "counting-attribute": (
        made(_counts, lambda: {"calls": 0}),
        r"'calls' changes every time|depend on the rest of the batch",
    ),
    "list-of-its-own": (made(_lists, lambda: {"seen": []}), "'seen' changes every time"),
    "experts": (
        made(lambda b, x: b.experts(plain(b, x)), lambda: {"experts": _Experts()}),
        "groups rows by their content",
    ),
    "tensor-of-nobody": (
        made(lambda b, x: plain(b, x) * b.scales[0], lambda: {"scales": [torch.ones(1)]}),
        "neither its input nor its own",
    ),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_one_module_is_refused_and_the_rest_replayed(name: str) -> None:
    make, reason = _REFUSED[name]
    done = both(make, loader, lambda *given: steps(*given, epochs=4))
    assert done.replayer.exact
    told = {place: why for place, why in done.replayer.refused.items() if place.startswith("body")}
    assert told, done.replayer.declined
    assert any(re.search(reason, why) for why in told.values()), told
    assert done.replayer.declined is None
    assert done.counts[1] >= 5  # the stem


class _Detaches(nn.Module):
    """What trains comes first, and its gradient is cut off."""

    def __init__(self, *, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.body = nn.Linear(WIDTH, WIDTH), Body(plain)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "detach":
            x = x + self.first(x).detach()
        elif self.how == "no-grad":
            with torch.no_grad():
                x = self.first(x)
        else:
            x = x * self.first.weight.data.sum()
        return self.head(self.body(x))


class _ScalesByItem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(plain), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x * self.head.weight.sum().item()))


def _frozen(make: Callable[[], nn.Module], **options: Any) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        torch.manual_seed(0)
        model = make()
        fl.freeze(model, **options)
        return model

    return made


def _by_hand(make: Callable[[], nn.Module], *, trains: bool) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return make().requires_grad_(trains)

    return made


class _ReadsOn(Stack):
    """Reads a number from an iterator in each pass."""

    def __init__(self, body: Body) -> None:
        super().__init__(body)
        self.numbers = iter(range(1, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * next(self.numbers)


# Nothing is replayed: model → the reason.
_DECLINED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "detached-live-value": (
        _frozen(lambda: _Detaches(how="detach"), all_but=["first", "head"]),
        "takes inputs that depend on trainable tensors",
    ),
    "live-value-without-gradient": (
        _frozen(lambda: _Detaches(how="no-grad"), all_but=["first", "head"]),
        "takes inputs that depend on trainable tensors",
    ),
    "live-data": (
        _frozen(lambda: _Detaches(how="data"), all_but=["first", "head"]),
        "takes inputs that depend on trainable tensors",
    ),
    "frozen-middle": (
        _frozen(lambda: Stack(Body(plain)), what="body"),
        "takes inputs that depend on trainable tensors",
    ),
    "nothing-frozen": (
        _by_hand(lambda: Stack(Body(plain)), trains=True),
        "nothing in the model is frozen: freeze a part of it first",
    ),
    "random-from-the-start": (
        made(
            lambda b, x: plain(b, x),
            kind=Stack,
            then=lambda m: m.stem.register_forward_pre_hook(
                lambda module, args: (args[0] + torch.randn(WIDTH),)
            ),
        ),
        "stem.*random numbers",
    ),
    "iterator": (made(kind=_ReadsOn), r"reads from an iterator \('numbers'\).*as an input"),
}


@pytest.mark.parametrize("name", _DECLINED)
def test_nothing_is_replayed(name: str) -> None:
    make, reason = _DECLINED[name]
    done = both(make, loader, lambda *given: steps(*given, epochs=4))
    assert done.counts[1] == 0
    assert done.replayer.declined is not None
    assert re.search(reason, done.replayer.declined)


def test_a_live_number_that_leaves_the_graph() -> None:
    done = both(
        _frozen(_ScalesByItem, all_but="head"), loader, lambda *given: steps(*given, epochs=5)
    )
    assert done.counts[1] == 0


def test_nothing_trains() -> None:
    model = Stack(Body(plain)).requires_grad_(False)
    replay = fl.replay(model, loader())
    for x, _ in replay:
        model(x)
    assert replay.replayer.stats.recorded == 0
    assert replay.replayer.declined == "nothing in the model trains: freeze only a part of it"


# Generators that only the module knows.


@pytest.mark.parametrize(
    ("make_generator", "draw"),
    [
        (lambda: np.random.default_rng(3), lambda own: float(own.random())),
        (lambda: random.Random(3), lambda own: own.random()),
    ],
    ids=["numpy", "python"],
)
def test_own_generators_that_torch_does_not_see(make_generator: Any, draw: Any) -> None:
    done = both(
        made(lambda b, x: plain(b, x) * draw(b.own), lambda: {"own": make_generator()}),
        loader,
        lambda *given: steps(*given, epochs=4),
    )
    assert not any(place == "body" for place in _kept(done.replayer))


def _kept(replayer: fl.Replayer) -> list[str]:
    return [] if replayer.declined or "body" in replayer.refused else ["body"]


# Rounding.


def test_experts_are_replayed_where_rounding_is_accepted() -> None:
    make = _REFUSED["experts"][0]
    plain = run(make, loader, replayed=False)
    done = run(make, loader, replayed=True, rounding=True)
    assert done.counts == (5, 10, 0)
    assert "body" not in done.replayer.refused
    assert done.replayer.exact is False
    for one, other in zip(plain.losses, done.losses, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_exact_until_rounding_has_replayed_something() -> None:
    replayer = fl.Replayer(made()(), rounding=True)
    assert replayer.exact


# Data.


class _Noisy(Pairs):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(WIDTH), y


@pytest.mark.parametrize("workers", [0, 2])
def test_random_augmentation(workers: int) -> None:
    done = both(
        made(),
        lambda: loader(_Noisy(40), num_workers=workers),
        lambda *given: steps(*given, epochs=4),
    )
    assert done.counts[1] == 0
    declined = done.replayer.declined
    assert declined is not None
    assert "random augmentation" in declined
    assert "views=K" in declined


def test_augmentation_in_the_loop() -> None:
    def loss_of(model: Any, batch: Any) -> Tensor:
        x, y = batch
        return functional.cross_entropy(model(x * 0.7 + 0.3 * x.flip(0)), y)

    done = both(made(), loader, lambda *given: steps(*given, loss_of=loss_of, epochs=4))
    assert done.counts[1] == 0
    assert "random augmentation" in str(done.replayer.declined)


class _Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        yield from Pairs(8)


_LOADERS: dict[str, tuple[Callable[[], Any], str]] = {
    "iterable": (
        lambda: DataLoader(_Stream(), batch_size=4),
        "_Stream is an IterableDataset.*fl.Replayer",
    ),
    "no-batches": (lambda: DataLoader(Pairs(8), batch_size=None), "batch_size=None.*fl.Replayer"),
    "a-list": (lambda: [torch.ones(8, WIDTH)], "DataLoader is needed, got list.*fl.Replayer"),
}


@pytest.mark.parametrize("name", _LOADERS)
def test_loaders_whose_samples_have_no_numbers(name: str) -> None:
    make, reason = _LOADERS[name]
    with pytest.raises(fl.ReplayError, match=reason):
        fl.replay(made()(), make())
