"""What can't be replayed safely is computed, with a reason that names the module and a way out."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset

import frostline as fl
from replaying import CLASSES, WIDTH, Pairs, both, cross_entropy, run, steps


class Body(nn.Module):
    """A frozen part that computes whatever ``how`` says."""

    def __init__(self, how: Callable[[Body, Tensor], Any], **held: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.how = how
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.how(self, x)


class Stack(nn.Module):
    """Stem and body are frozen, the head trains."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(WIDTH, WIDTH), body, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


def _plain(body: Body, x: Tensor) -> Tensor:
    return body.fc2(torch.tanh(body.fc1(x)))


def _loader(data: Dataset[Any] | None = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(data or Pairs(40), **{"batch_size": 8, "shuffle": True, **options})


def _made(
    how: Callable[[Body, Tensor], Any] = _plain,
    held: Callable[[], dict[str, Any]] = dict,
    *,
    kind: type[Stack] = Stack,
    then: Callable[[Stack], object] = lambda model: None,
    **options: Any,
) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = kind(Body(how, **held()))
        fl.freeze(model, **{"all_but": "head", **options})
        then(model)
        return model

    return make


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


def _leaves(body: Body, x: Tensor) -> Tensor:
    body.left = body.fc1(x)
    return _plain(body, x)


def _counts(body: Body, x: Tensor) -> Tensor:
    body.calls += 1
    return _plain(body, x) * body.calls


def _lists(body: Body, x: Tensor) -> Tensor:
    body.seen.append(len(x))
    return _plain(body, x)


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


def _hooked(model: Stack) -> None:
    model.body.register_forward_hook(lambda module, args, output: output * 2)


def _hooked_inside(model: Stack) -> None:
    model.body.fc1.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def _moving_statistics() -> dict[str, Any]:
    return {"norm": nn.BatchNorm1d(WIDTH)}


# The body is refused and the stem before it is replayed: model → the reason.
_REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout": (
        _made(
            lambda b, x: b.drop(_plain(b, x)),
            lambda: {"drop": nn.Dropout(0.2)},
            pin_eval=False,
        ),
        "draws random numbers",
    ),
    "functional-dropout": (
        _made(lambda b, x: functional.dropout(_plain(b, x), 0.2, training=True)),
        "draws random numbers",
    ),
    "noise": (_made(lambda b, x: _plain(b, x) + torch.randn_like(x)), "draws random numbers"),
    "noise-of-an-own-generator": (
        _made(
            lambda b, x: _plain(b, x) + torch.randn(x.shape, generator=b.own),
            lambda: {"own": torch.Generator().manual_seed(3)},
        ),
        "draws random numbers",
    ),
    "python-random": (
        _made(lambda b, x: _plain(b, x) * random.random()),
        "random numbers of Python",
    ),
    "numpy-random": (
        _made(lambda b, x: _plain(b, x) * float(np.random.rand())),
        "random numbers of Python or NumPy",
    ),
    "random-mask": (
        _made(lambda b, x: _plain(b, x) * torch.bernoulli(torch.full_like(x, 0.9))),
        "draws random numbers",
    ),
    "batch-statistics": (
        _made(
            lambda b, x: b.norm(_plain(b, x)),
            _moving_statistics,
            pin_eval=False,
            hold_statistics=False,
        ),
        "'body.norm.num_batches_tracked' as it runs",
    ),
    "in-batch-contrast": (
        _made(lambda b, x: _plain(b, x) - x.mean(0)),
        "depend on the rest of the batch",
    ),
    "softmax-over-the-batch": (
        _made(lambda b, x: _plain(b, x).softmax(0)),
        "depend on the rest of the batch",
    ),
    "place-in-the-batch": (
        _made(lambda b, x: _plain(b, x) + torch.arange(len(x))[:, None]),
        "depend on the rest of the batch, or on the place in it",
    ),
    "moving-buffer": (
        _made(lambda b, x: b.counts(_plain(b, x)), lambda: {"counts": _Counts()}),
        r"'(body\.counts\.)?seen' (changes )?as it runs|changes as it runs",
    ),
    "branch-on-content": (
        _made(lambda b, x: _plain(b, x) * (1 if x.sum() > 0 else 2)),
        "branches on content",
    ),
    "item": (_made(lambda b, x: _plain(b, x) * x.mean().item()), "branches on content"),
    "tolist": (_made(lambda b, x: _plain(b, x) * x.tolist()[0][0]), "branches on content"),
    "numpy": (
        _made(lambda b, x: _plain(b, x) * float(x.detach().numpy()[0, 0])),
        "branches on content",
    ),
    "hook": (_made(then=_hooked), "a hook hangs on it"),
    "hook-inside": (_made(then=_hooked_inside), "a hook hangs on it"),
    "side-channel": (_made(_leaves, kind=_ReadsInside), "used outside, past its output"),
    "opaque-output": (
        _made(lambda b, x: _Opaque(_plain(b, x)), kind=_Unpacks),
        "no tensor|can't be made anew",
    ),
    "counting-attribute": (
        _made(_counts, lambda: {"calls": 0}),
        r"'calls' changes every time|depend on the rest of the batch",
    ),
    "list-of-its-own": (_made(_lists, lambda: {"seen": []}), "'seen' changes every time"),
    "experts": (
        _made(lambda b, x: b.experts(_plain(b, x)), lambda: {"experts": _Experts()}),
        "groups rows by their content",
    ),
    "tensor-of-nobody": (
        _made(lambda b, x: _plain(b, x) * b.scales[0], lambda: {"scales": [torch.ones(1)]}),
        "neither its input nor its own",
    ),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_one_module_is_refused_and_the_rest_replayed(name: str) -> None:
    make, reason = _REFUSED[name]
    done = both(make, _loader, lambda *given: steps(*given, epochs=4))
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
        self.first, self.body = nn.Linear(WIDTH, WIDTH), Body(_plain)
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
        self.body, self.head = Body(_plain), nn.Linear(WIDTH, CLASSES)

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
        _frozen(lambda: Stack(Body(_plain)), what="body"),
        "takes inputs that depend on trainable tensors",
    ),
    "nothing-frozen": (
        _by_hand(lambda: Stack(Body(_plain)), trains=True),
        "nothing in the model is frozen: freeze a part of it first",
    ),
    "random-from-the-start": (
        _made(
            lambda b, x: _plain(b, x),
            kind=Stack,
            then=lambda m: m.stem.register_forward_pre_hook(
                lambda module, args: (args[0] + torch.randn(WIDTH),)
            ),
        ),
        "stem.*random numbers",
    ),
    "iterator": (_made(kind=_ReadsOn), r"reads from an iterator \('numbers'\).*as an input"),
}


@pytest.mark.parametrize("name", _DECLINED)
def test_nothing_is_replayed(name: str) -> None:
    make, reason = _DECLINED[name]
    done = both(make, _loader, lambda *given: steps(*given, epochs=4))
    assert done.counts[1] == 0
    assert done.replayer.declined is not None
    assert re.search(reason, done.replayer.declined)


def test_a_live_number_that_leaves_the_graph() -> None:
    done = both(
        _frozen(_ScalesByItem, all_but="head"), _loader, lambda *given: steps(*given, epochs=5)
    )
    assert done.counts[1] == 0


def test_nothing_trains() -> None:
    model = Stack(Body(_plain)).requires_grad_(False)
    replay = fl.replay(model, _loader())
    for x, _ in replay:
        model(x)
    assert replay.replayer.stats.recorded == 0
    assert replay.replayer.declined == "nothing in the model trains: freeze only a part of it"


def _called(model: nn.Module, call: Any = None) -> fl.Replayer:
    replayer = fl.Replayer(model)
    for _ in range(3):
        with replayer.samples(range(8)):
            (call or model)(torch.ones(8, WIDTH))
    return replayer


def _compiled_outside() -> nn.Module:
    return torch.compile(_made()(), backend="eager")


def _compiled_in_place() -> nn.Module:
    model = _made()()
    model.compile(backend="eager")
    return model


def _compiled_inside() -> nn.Module:
    model = _made()()
    model.body = torch.compile(model.body, backend="eager")
    return model


def _scripted() -> nn.Module:
    with torch.no_grad():
        stem = torch.jit.trace(nn.Linear(WIDTH, WIDTH), torch.ones(2, WIDTH))
    return nn.Sequential(stem.requires_grad_(False), nn.Linear(WIDTH, CLASSES))


_WRAPPED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "compiled-outside": (_compiled_outside, "is compiled.*as it was before torch.compile"),
    "compiled-in-place": (_compiled_in_place, "is compiled.*as it was before torch.compile"),
    "compiled-inside": (_compiled_inside, "body.* is compiled"),
    "torchscript": (_scripted, "0 is a TorchScript program"),
    "data-parallel": (lambda: nn.DataParallel(_made()()), "DataParallel.*Replay the bare model"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", _WRAPPED)
def test_models_that_cannot_be_seen_into(name: str) -> None:
    make, reason = _WRAPPED[name]
    replayer = _called(make())
    assert replayer.stats.replayed == 0
    assert replayer.declined is not None
    assert re.search(reason, replayer.declined)


def test_a_compiled_model_may_run_beside_its_bare_one() -> None:
    model = _made()()
    compiled = torch.compile(model, backend="eager")
    expected = model(torch.ones(8, WIDTH))
    replayer = fl.Replayer(model)
    for _ in range(3):
        with replayer.samples(range(8)):
            assert torch.equal(compiled(torch.ones(8, WIDTH)), expected)


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
        _made(lambda b, x: _plain(b, x) * draw(b.own), lambda: {"own": make_generator()}),
        _loader,
        lambda *given: steps(*given, epochs=4),
    )
    assert not any(place == "body" for place in _kept(done.replayer))


def _kept(replayer: fl.Replayer) -> list[str]:
    return [] if replayer.declined or "body" in replayer.refused else ["body"]


# Rounding.


def test_experts_are_replayed_where_rounding_is_accepted() -> None:
    make = _REFUSED["experts"][0]
    plain = run(make, _loader, replayed=False)
    done = run(make, _loader, replayed=True, rounding=True)
    assert done.counts == (5, 10, 0)
    assert "body" not in done.replayer.refused
    assert done.replayer.exact is False
    for one, other in zip(plain.losses, done.losses, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_exact_until_rounding_has_replayed_something() -> None:
    replayer = fl.Replayer(_made()(), rounding=True)
    assert replayer.exact


# Data.


class _Noisy(Pairs):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(WIDTH), y


@pytest.mark.parametrize("workers", [0, 2])
def test_random_augmentation(workers: int) -> None:
    done = both(
        _made(),
        lambda: _loader(_Noisy(40), num_workers=workers),
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

    done = both(_made(), _loader, lambda *given: steps(*given, loss_of=loss_of, epochs=4))
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
        fl.replay(_made()(), make())


# Changes between epochs: never what was recorded before.


def _changing(change: Callable[[Any, int], object]) -> Any:
    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for epoch in range(6):
            change(model, epoch)
            for batch in batches(loader):
                optimizer.zero_grad()
                loss = cross_entropy(model, batch)
                loss.backward()
                optimizer.step()
                yield loss.detach()

    return loop


def _at_three(change: Callable[[Any], object]) -> Callable[[Any, int], object]:
    return lambda model, epoch: change(model) if epoch == 3 else None


def _twice_as_much(body: Body, x: Tensor) -> Tensor:
    return _plain(body, x) * 2


class _Doubled(Body):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * 2


def _replace_forward(model: Any) -> None:
    forward = model.body.forward
    model.body.forward = lambda x: forward(x) * 2


def _hold(**held: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {name: value() if callable(value) else value for name, value in held.items()}


_scaled = _made(lambda b, x: _plain(b, x) * b.scale, _hold(scale=1.0))

# model, and what happens to it: in the fourth epoch, or in each.
_CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, int], object]]] = {
    "number": (_scaled, _at_three(lambda m: setattr(m.body, "scale", 2.0))),
    "number-in-every-epoch": (_scaled, lambda m, epoch: setattr(m.body, "scale", 1.0 + epoch)),
    "in-a-dict": (
        _made(lambda b, x: _plain(b, x) * b.held["k"], _hold(held=lambda: {"k": 1.0})),
        _at_three(lambda m: m.body.held.update(k=2.0)),
    ),
    "in-a-nested-dict": (
        _made(lambda b, x: _plain(b, x) * b.held["a"]["k"], _hold(held=lambda: {"a": {"k": 1.0}})),
        _at_three(lambda m: m.body.held["a"].update(k=2.0)),
    ),
    "in-a-nested-list": (
        _made(lambda b, x: _plain(b, x) * b.held[0][0], _hold(held=lambda: [[1.0]])),
        _at_three(lambda m: m.body.held[0].__setitem__(0, 2.0)),
    ),
    "in-a-configuration": (
        _made(lambda b, x: _plain(b, x) * b.held.k, _hold(held=lambda: SimpleNamespace(k=1.0))),
        _at_three(lambda m: setattr(m.body.held, "k", 2.0)),
    ),
    "in-a-nested-configuration": (
        _made(
            lambda b, x: _plain(b, x) * b.held.a.k,
            _hold(held=lambda: SimpleNamespace(a=SimpleNamespace(k=1.0))),
        ),
        _at_three(lambda m: setattr(m.body.held.a, "k", 2.0)),
    ),
    "in-a-tensor": (
        _made(lambda b, x: _plain(b, x) * b.held, _hold(held=lambda: torch.ones(1))),
        _at_three(lambda m: m.body.held.fill_(2)),
    ),
    "in-a-tensor-behind-autograd": (
        _made(lambda b, x: _plain(b, x) * b.held, _hold(held=lambda: torch.ones(1))),
        _at_three(lambda m: m.body.held.data.fill_(2)),
    ),
    "in-an-array": (
        _made(
            lambda b, x: _plain(b, x) * torch.from_numpy(b.held),
            _hold(held=lambda: np.ones(1, np.float32)),
        ),
        _at_three(lambda m: m.body.held.fill(2)),
    ),
    "another-function": (_made(), _at_three(lambda m: setattr(m.body, "how", _twice_as_much))),
    "another-forward": (_made(), _at_three(_replace_forward)),
    "another-class": (_made(), _at_three(lambda m: setattr(m.body, "__class__", _Doubled))),
    "a-hook": (_made(), _at_three(_hooked)),
    "a-hook-inside": (_made(), _at_three(_hooked_inside)),
    "matmul-precision": (
        _made(),
        lambda m, epoch: torch.set_float32_matmul_precision("medium" if epoch == 3 else "highest"),
    ),
}


@pytest.mark.parametrize("name", _CHANGES)
def test_changes_after_recording(name: str) -> None:
    make, change = _CHANGES[name]
    both(make, _loader, _changing(change))


def test_a_global_hook_after_recording() -> None:
    def doubles(module: nn.Module, args: Any, output: Any) -> Any:
        return output * 2 if isinstance(module, Body) else None

    handles: list[Any] = []

    def change(model: Any, epoch: int) -> None:
        if epoch == 3:
            handles.append(nn.modules.module.register_module_forward_hook(doubles))
        elif epoch == 5:
            handles.pop().remove()

    both(_made(), _loader, _changing(change))


def test_what_a_frozen_module_leaves_for_the_loop() -> None:
    """The loop reads an attribute that the body sets: replay may refuse, but not mislead."""

    def loss_of(model: Any, batch: Any) -> Tensor:
        x, y = batch
        loss = functional.cross_entropy(model(x), y)
        return loss + model.body.left.mean() * model.head.weight.mean()

    plain = run(
        _made(_leaves), _loader, lambda *given: steps(*given, loss_of=loss_of), replayed=False
    )
    try:
        done = run(
            _made(_leaves), _loader, lambda *given: steps(*given, loss_of=loss_of), replayed=True
        )
    except (fl.ReplayError, AttributeError):
        return  # loud
    assert all(torch.equal(a, b) for a, b in zip(plain.losses, done.losses, strict=True))
