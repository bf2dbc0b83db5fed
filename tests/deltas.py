"""A small model with BatchNorm that is fine-tuned, for tests of delta checkpoints."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from zoo import Net

import frostline as fl

HEAD = ("head.weight", "head.bias")
NORM = ("running_mean", "running_var", "num_batches_tracked")


def train(model: nn.Module, steps: int = 2) -> torch.optim.Optimizer:
    """Train what requires gradients; gives the optimizer."""
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1)
    model.train()
    for _ in range(steps):
        step(model, optimizer)
    return optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(6, 8)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def tuned(all_but: object = "head") -> tuple[Net, Net]:
    """A base, and a copy of it of which a part was trained."""
    base = Net()
    model = copy.deepcopy(base)
    fl.freeze(model, all_but=all_but)  # type: ignore[arg-type]
    train(model)
    return base, model


def contents(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two state dicts are bitwise the same."""
    return one.keys() == other.keys() and all(
        fl.fingerprint(one[name]) == fl.fingerprint(other[name]) for name in one
    )
