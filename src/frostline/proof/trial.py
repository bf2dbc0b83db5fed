"""Does an optimizer move what has no gradient? Tried on two small tensors, not looked up."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def moves_without_gradient(
    build: Callable[..., Optimizer],
    defaults: Mapping[str, Any],
    group: Mapping[str, Any] | None = None,
) -> bool | None:
    """Try an optimizer on two small matrices, one of them frozen after the first step.

    Args:
        build: the optimizer's class, or a callable that takes parameter groups first.
        defaults: its options; those that ``build`` does not take are left out.
        group: options of the group that holds the two.

    Returns:
        Whether the frozen one moved; None if the optimizer can't be tried like this.

    >>> moves_without_gradient(torch.optim.LBFGS, {}), moves_without_gradient(torch.optim.AdamW, {})
    (True, False)
    """
    torch_state = torch.random.get_rng_state()
    moving, frozen = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    try:
        options = {"params": [moving, frozen], **(group or {})}
        trial = build([options], **_accepted(build, defaults))
        _step(trial, moving, frozen)
        frozen.grad = None
        before = frozen.detach().clone()
        _step(trial, moving)
    except Exception:  # an optimizer that small matrices do not suit says nothing either way
        return None
    finally:
        torch.random.set_rng_state(torch_state)
    return not torch.equal(before, frozen.detach())


def _accepted(build: Callable[..., Optimizer], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's ``defaults`` may hold more than its constructor takes."""
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):
        return dict(defaults)
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return dict(defaults)
    return {key: value for key, value in defaults.items() if key in parameters}


def _step(trial: Optimizer, *parameters: nn.Parameter) -> None:
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    trial.step(lambda: 1.0)
