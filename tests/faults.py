"""Two small nets, ways to make a fault show in them, and the codes that ``fl.check`` gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import frostline as fl


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def backward(model: nn.Module) -> None:
    model(torch.randn(6, 8)).square().sum().backward()


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    optimizer.step(lambda: 0.0)
    optimizer.zero_grad()


def moved(tensor: torch.Tensor, act: Callable[[], object]) -> bool:
    """Whether ``act`` changes the tensor."""
    before = tensor.detach().clone()
    act()
    return not torch.equal(before, tensor.detach())


def codes(*args: Any, **kwargs: Any) -> set[str]:
    return {finding.code for finding in fl.check(*args, **kwargs)}
