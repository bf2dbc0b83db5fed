"""What changes outside of the weights after recording is never replayed as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from refusing import Body, hooked, hooked_inside, leaves, loader, made, plain
from replaying import both, cross_entropy, run, steps
from torch import Tensor, nn
from torch.nn import functional

import frostline as fl


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
    return plain(body, x) * 2


class _Doubled(Body):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * 2


def _replace_forward(model: Any) -> None:
    forward = model.body.forward
    model.body.forward = lambda x: forward(x) * 2


def _hold(**held: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {name: value() if callable(value) else value for name, value in held.items()}


_scaled = made(lambda b, x: plain(b, x) * b.scale, _hold(scale=1.0))

# model, and what happens to it: in the fourth epoch, or in each.
_CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, int], object]]] = {
    "number": (_scaled, _at_three(lambda m: setattr(m.body, "scale", 2.0))),
    "number-in-every-epoch": (_scaled, lambda m, epoch: setattr(m.body, "scale", 1.0 + epoch)),
    "in-a-dict": (
        made(lambda b, x: plain(b, x) * b.held["k"], _hold(held=lambda: {"k": 1.0})),
        _at_three(lambda m: m.body.held.update(k=2.0)),
    ),
    "in-a-nested-dict": (
        made(lambda b, x: plain(b, x) * b.held["a"]["k"], _hold(held=lambda: {"a": {"k": 1.0}})),
        _at_three(lambda m: m.body.held["a"].update(k=2.0)),
    ),
    "in-a-nested-list": (
        made(lambda b, x: plain(b, x) * b.held[0][0], _hold(held=lambda: [[1.0]])),
        _at_three(lambda m: m.body.held[0].__setitem__(0, 2.0)),
    ),
    "in-a-configuration": (
        made(lambda b, x: plain(b, x) * b.held.k, _hold(held=lambda: SimpleNamespace(k=1.0))),
        _at_three(lambda m: setattr(m.body.held, "k", 2.0)),
    ),
    "in-a-nested-configuration": (
        made(
            lambda b, x: plain(b, x) * b.held.a.k,
            _hold(held=lambda: SimpleNamespace(a=SimpleNamespace(k=1.0))),
        ),
        _at_three(lambda m: setattr(m.body.held.a, "k", 2.0)),
    ),
    "in-a-tensor": (
        made(lambda b, x: plain(b, x) * b.held, _hold(held=lambda: torch.ones(1))),
        _at_three(lambda m: m.body.held.fill_(2)),
    ),
    "in-a-tensor-behind-autograd": (
        made(lambda b, x: plain(b, x) * b.held, _hold(held=lambda: torch.ones(1))),
        _at_three(lambda m: m.body.held.data.fill_(2)),
    ),
    "in-an-array": (
        made(
            lambda b, x: plain(b, x) * torch.from_numpy(b.held),
            _hold(held=lambda: np.ones(1, np.float32)),
        ),
        _at_three(lambda m: m.body.held.fill(2)),
    ),
    "another-function": (made(), _at_three(lambda m: setattr(m.body, "how", _twice_as_much))),
    "another-forward": (made(), _at_three(_replace_forward)),
    "another-class": (made(), _at_three(lambda m: setattr(m.body, "__class__", _Doubled))),
    "a-hook": (made(), _at_three(hooked)),
    "a-hook-inside": (made(), _at_three(hooked_inside)),
    "matmul-precision": (
        made(),
        lambda m, epoch: torch.set_float32_matmul_precision("medium" if epoch == 3 else "highest"),
    ),
}


@pytest.mark.parametrize("name", _CHANGES)
def test_changes_after_recording(name: str) -> None:
    make, change = _CHANGES[name]
    both(make, loader, _changing(change))


def test_a_global_hook_after_recording() -> None:
    def doubles(module: nn.Module, args: Any, output: Any) -> Any:
        return output * 2 if isinstance(module, Body) else None

    handles: list[Any] = []

    def change(model: Any, epoch: int) -> None:
        if epoch == 3:
            handles.append(nn.modules.module.register_module_forward_hook(doubles))
        elif epoch == 5:
            handles.pop().remove()

    both(made(), loader, _changing(change))


def test_what_a_frozen_module_leaves_for_the_loop() -> None:
    """The loop reads an attribute that the body sets: replay may refuse, but not mislead."""

    def loss_of(model: Any, batch: Any) -> Tensor:
        x, y = batch
        loss = functional.cross_entropy(model(x), y)
        return loss + model.body.left.mean() * model.head.weight.mean()

    plain = run(made(leaves), loader, lambda *given: steps(*given, loss_of=loss_of), replayed=False)
    try:
        done = run(
            made(leaves), loader, lambda *given: steps(*given, loss_of=loss_of), replayed=True
        )
    except (fl.ReplayError, AttributeError):
        return  # loud
    assert all(torch.equal(a, b) for a, b in zip(plain.losses, done.losses, strict=True))
