"""What a guard covers, what it does about a violation, and that it leaves no trace."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.optim import AdamW
from torch.optim import optimizer as optimizer_hooks

import frostline as fl


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Linear(4, 3)
    )


def frozen_net() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = net()
    fl.freeze(model, all_but=["3", "4"])
    return model, fl.optimizer(AdamW, model, lr=0.1)


def train(
    model: nn.Module,
    *optimizers: torch.optim.Optimizer,
    steps: int = 1,
    before: Callable[[int], object] = lambda number: None,
) -> None:
    for number in range(1, steps + 1):
        before(number)
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randn(6, 8)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


@contextmanager
def warned() -> Iterator[list[str]]:
    """The guard's warnings, none of which is an error inside."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", fl.GuardWarning)
        yield messages
    messages += [str(w.message) for w in caught if w.category is fl.GuardWarning]


@contextmanager
def violated(
    model: nn.Module, *optimizers: torch.optim.Optimizer, match: str = ".", **options: Any
) -> Iterator[pytest.ExceptionInfo[fl.GuardError]]:
    """A guarded loop that the guard ends by an error."""
    with (
        pytest.raises(fl.GuardError, match=match) as caught,
        fl.guard(model, *optimizers, **options),
    ):
        yield caught


def bits(model: nn.Module) -> dict[str, str]:
    return {name: fl.fingerprint(tensor) for name, tensor in model.state_dict().items()}


def hooks(model: nn.Module) -> list[object]:
    """Everything that a guard could leave behind."""
    kept: list[object] = [
        list(module_hooks._global_forward_hooks),
        list(module_hooks._global_forward_pre_hooks),
        list(optimizer_hooks._global_optimizer_pre_hooks),
        list(optimizer_hooks._global_optimizer_post_hooks),
    ]
    for module in model.modules():
        kept += [{k: list(v) for k, v in vars(module).items() if k.endswith("_hooks")}]
    return kept
