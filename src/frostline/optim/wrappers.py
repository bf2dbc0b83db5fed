"""Optimizers that wrap another one: Accelerate's and Fabric's prepared ones."""

from __future__ import annotations

from torch.optim import Optimizer


def bare_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer that steps, which a wrapper holds as ``.optimizer``; itself if it is bare.

    >>> import torch
    >>> bare = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)
    >>> bare_optimizer(bare) is bare
    True
    """
    inner = getattr(optimizer, "optimizer", None)
    while isinstance(inner, Optimizer) and inner is not optimizer:
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    return optimizer
