"""Loops that nest optimizer steps, thaw in the middle of a step, or keep state on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from guarding import frozen_net, net, train, violated, warned
from torch import Tensor, nn
from torch.optim import SGD, AdamW

import frostline as fl


def faults(error: fl.GuardError) -> list[tuple[str, str]]:
    return [(violation.kind, violation.name) for violation in error.violations]


class Experts(nn.Module):
    """Two experts of which only the first is used, until told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])
        self.chosen = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[self.chosen](x)


# --- optimizers made of optimizers --------------------------------------------------------------


class Outer(SGD):
    """Torch wraps the step of each class, so hooks fire for this one and for the one inside."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.decayed: Tensor | None = None
        self.fails = False

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        if self.fails:
            raise RuntimeError("overflow")
        if self.decayed is not None:
            self.decayed.data.mul_(0.5)
        return loss


def outer(model: nn.Module) -> Outer:
    SGD([nn.Parameter(torch.zeros(1))])  # from now on SGD.step is wrapped too
    return Outer([p for p in model.parameters() if p.requires_grad], lr=0.1)


@pytest.mark.parametrize("every", [1, None])
def test_a_step_inside_a_step_of_the_same_optimizer_is_one_step(every: int | None) -> None:
    model, _ = frozen_net()
    optimizer = outer(model)
    with fl.guard(model, optimizer, every=every) as guard:
        train(model, optimizer, steps=5)
    assert guard.report.steps == 5
    assert guard.report.violations == ()


def test_what_a_step_writes_after_the_step_inside_it_is_put_down_to_it() -> None:
    model, _ = frozen_net()
    optimizer = outer(model)
    optimizer.decayed = model[0].weight
    with violated(model, optimizer, every=1) as caught:
        train(model, optimizer, steps=2)
    assert caught.value.step == 1
    assert caught.value.writer is not None
    assert (caught.value.writer.kind, caught.value.writer.name) == ("optimizer", "Outer")


def test_steps_that_fail_within_do_not_hide_later_ones() -> None:
    model, _ = frozen_net()
    optimizer = outer(model)
    with fl.guard(model, optimizer) as guard:
        optimizer.fails = True
        for _ in range(2):
            with pytest.raises(RuntimeError, match="overflow"):
                train(model, optimizer)
        optimizer.fails = False
        train(model, optimizer, steps=3)
    assert guard.report.steps == 3


class Both(SGD):
    """Steps another optimizer inside its own step."""

    other: torch.optim.Optimizer

    def step(self, closure: Any = None) -> Any:
        self.other.step()
        return super().step(closure)


def test_a_step_inside_the_step_of_another_optimizer_is_its_own() -> None:
    model, inner = frozen_net()
    both = Both([nn.Parameter(torch.zeros(1))], lr=0.1)
    both.other = inner
    with fl.guard(model, inner) as guard:
        for _ in range(3):
            inner.zero_grad()
            model(torch.randn(6, 8)).square().mean().backward()
            both.step()
    assert guard.report.steps == 3


# --- a thaw between forward and backward --------------------------------------------------------


def half_thawed() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))
    fl.freeze(model, "0")
    return model, fl.optimizer(AdamW, model, lr=0.1, declare_all=True)


@pytest.mark.parametrize("every", [1, None])
@pytest.mark.parametrize("by_children", [False, True])
def test_a_thaw_between_forward_and_backward(every: int | None, by_children: bool) -> None:
    model, optimizer = half_thawed()

    def forward() -> Tensor:
        x = torch.randn(6, 8)
        return model[1](model[0](x)) if by_children else model(x)

    with violated(model, optimizer, every=every, match="thawed between forward and") as caught:
        for number in (1, 2):
            optimizer.zero_grad()
            loss = forward().mean()
            if number == 2:
                fl.unfreeze(model, "0")
                with torch.no_grad():
                    model(torch.randn(6, 8))  # a validation meanwhile brings no gradient
            loss.backward()
            optimizer.step()
    assert faults(caught.value) == [("thaw", "0.weight"), ("thaw", "0.bias")]
    assert caught.value.step == 2
    assert "step boundary" in str(caught.value)


def test_a_late_thaw_is_named_once_and_the_next_step_trains_it() -> None:
    model, optimizer = half_thawed()
    guard = fl.guard(model, optimizer, on="warn")
    with warned() as messages, guard:
        train(model, optimizer)
        optimizer.zero_grad()
        loss = model(torch.randn(6, 8)).mean()
        fl.unfreeze(model, "0")
        loss.backward()
        optimizer.step()
        train(model, optimizer, steps=2)
    assert len(messages) == 1
    assert [(v.kind, v.name, v.step) for v in guard.report.violations] == [
        ("thaw", "0.weight", 2),
        ("thaw", "0.bias", 2),
    ]
    assert model[0].weight.grad is not None


def at_the_boundary(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    fl.unfreeze(model, "experts.1")
    train(model, optimizer)


def between_two_micro_batches(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(6, 8)).square().mean().backward()
    fl.unfreeze(model, "experts.1", gradients="drop")
    model(torch.randn(6, 8)).square().mean().backward()
    optimizer.step()


def after_all_gradients_are_gone(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(6, 8)).square().mean().backward()
    optimizer.zero_grad()
    fl.unfreeze(model, "experts.1")
    optimizer.step()


def after_the_step_without_another_forward(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    model(torch.randn(6, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    fl.unfreeze(model, "experts.1")
    optimizer.step()


@pytest.mark.parametrize("every", [1, None])
@pytest.mark.parametrize(
    "thaw",
    [
        at_the_boundary,
        between_two_micro_batches,
        after_all_gradients_are_gone,
        after_the_step_without_another_forward,
    ],
)
def test_a_thawed_expert_that_is_not_used_is_no_late_thaw(
    thaw: Callable[[nn.Module, torch.optim.Optimizer], None], every: int | None
) -> None:
    """A forward ran after the thaw, or no gradient was to come: there is none for good reason."""
    model = Experts()
    fl.freeze(model, "experts.1")
    optimizer = fl.optimizer(AdamW, model, lr=0.1, declare_all=True)
    guard = fl.guard(model, optimizer, on="warn", every=every)
    guard.start()
    train(model, optimizer)
    thaw(model, optimizer)
    guard.stop(check=False)
    assert guard.report.violations == ()


# --- state that is kept on purpose --------------------------------------------------------------


def test_state_that_sync_keeps_on_purpose_is_well() -> None:
    model = net()
    optimizer = fl.optimizer(AdamW, model, lr=0.1)
    train(model, optimizer)
    optimizer.zero_grad()
    fl.freeze(model, "3")
    fl.sync(model, optimizer, state="keep")
    with fl.guard(model, optimizer) as guard:
        train(model, optimizer, steps=2)
    assert guard.report.violations == ()
    assert optimizer.state[model[3].weight]


def test_state_kept_for_one_excuses_no_other() -> None:
    model = net()
    optimizer = fl.optimizer(AdamW, model, lr=0.1)
    train(model, optimizer)
    optimizer.zero_grad()
    fl.freeze(model, "3")
    fl.sync(model, optimizer, state="keep")
    with violated(model, optimizer, match="keeps state for it") as caught:
        train(model, optimizer)
        optimizer.zero_grad()
        fl.freeze(model, "0")  # and no sync
        train(model, optimizer)
    assert faults(caught.value) == [("membership", "0.weight"), ("membership", "0.bias")]
