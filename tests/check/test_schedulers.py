"""FL302 against what each scheduler of torch really does when a group joins late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

import frostline as fl

Build = Callable[[torch.optim.Optimizer], Any]

BREAKING: dict[str, tuple[Build, str]] = {
    "LambdaLR": (lambda o: schedulers.LambdaLR(o, lambda e: 0.9**e), "ValueError"),
    "MultiplicativeLR": (lambda o: schedulers.MultiplicativeLR(o, lambda e: 0.9), "ValueError"),
    "CyclicLR": (lambda o: schedulers.CyclicLR(o, 0.01, 0.1), "ValueError"),
    "CosineAnnealingWarmRestarts": (
        lambda o: schedulers.CosineAnnealingWarmRestarts(o, 5),
        "ValueError",
    ),
    "CosineAnnealingLR": (lambda o: schedulers.CosineAnnealingLR(o, 5), "ValueError"),
    "OneCycleLR": (lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=40), "KeyError"),
    "ReduceLROnPlateau": (
        lambda o: schedulers.ReduceLROnPlateau(o, patience=0, min_lr=[0.0]),
        "RuntimeError",
    ),
    "SequentialLR": (
        lambda o: schedulers.SequentialLR(
            o, [schedulers.ExponentialLR(o, 0.9), schedulers.LambdaLR(o, lambda e: 1.0)], [4]
        ),
        "ValueError",
    ),
}

RAISING_TOO_HIGH: dict[str, Build] = {
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.5, total_iters=4),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.5, 4), schedulers.ExponentialLR(o, 1.0)], o
    ),
}

UNAFFECTED: dict[str, Build] = {
    "StepLR": lambda o: schedulers.StepLR(o, 3),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [3]),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 30),
    "ReduceLROnPlateau with one minimum": lambda o: schedulers.ReduceLROnPlateau(o, patience=0),
}


def joined_late(build: Build) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1, momentum=0.9)
    scheduler = build(optimizer)
    advance(optimizer, scheduler)
    assert fl.check(model[1], optimizer, scheduler) == []
    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.1})
    return model, optimizer, scheduler


def advance(optimizer: torch.optim.Optimizer, scheduler: Any, *, times: int = 1) -> None:
    on_plateau = isinstance(scheduler, schedulers.ReduceLROnPlateau)
    for _ in range(times):
        optimizer.step()
        scheduler.step(*((1.0,) if on_plateau else ()))


@pytest.mark.parametrize("name", BREAKING)
def test_a_scheduler_that_will_raise(name: str) -> None:
    build, error = BREAKING[name]
    model, optimizer, scheduler = joined_late(build)
    findings = fl.check(model, optimizer, scheduler)
    assert {f.code for f in findings} == {"FL302"}
    assert error in findings[0].message
    with pytest.raises((ValueError, KeyError, RuntimeError)) as raised:
        advance(optimizer, scheduler, times=20)
    assert raised.type.__name__ == error


@pytest.mark.parametrize("name", RAISING_TOO_HIGH)
def test_a_scheduler_that_raises_the_rate_in_silence(name: str) -> None:
    model, optimizer, scheduler = joined_late(RAISING_TOO_HIGH[name])
    findings = fl.check(model, optimizer, scheduler)
    assert {f.code for f in findings} == {"FL302"}
    assert "multiplies the new group's rate" in findings[0].message
    advance(optimizer, scheduler, times=6)
    assert optimizer.param_groups[1]["lr"] > 0.15


@pytest.mark.parametrize("name", UNAFFECTED)
def test_a_scheduler_that_copes(name: str) -> None:
    model, optimizer, scheduler = joined_late(UNAFFECTED[name])
    assert fl.check(model, optimizer, scheduler) == []
    advance(optimizer, scheduler, times=6)
    assert 0 < optimizer.param_groups[1]["lr"] <= 0.1


def test_a_scheduler_of_another_optimizer() -> None:
    model = nn.Linear(2, 2)
    optimizer, other = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    scheduler = schedulers.StepLR(other, 3)
    assert [(f.code, f.where) for f in fl.check(model, optimizer, scheduler)] == [
        ("FL301", "StepLR")
    ]
    assert fl.check(model, None, scheduler) == []
    assert fl.check(model, other, [scheduler]) == []


def test_an_optimizer_inside_a_wrapper_is_known() -> None:
    class Wrapper(torch.optim.SGD):
        optimizer: torch.optim.Optimizer

    model = nn.Linear(2, 2)
    wrapper = Wrapper(model.parameters(), lr=0.1)
    wrapper.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert fl.check(model, wrapper, schedulers.StepLR(wrapper.optimizer, 3)) == []
