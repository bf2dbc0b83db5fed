"""The learning rate over a run: a warmup, then constant or down to nothing."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from frostline.finetune.config import FinetuneConfig


def scheduler_of(
    config: FinetuneConfig, optimizer: Optimizer, *, total_steps: int
) -> LambdaLR | None:
    """What is to step after each step of the optimizer; None if the rate stays as it is.

    Args:
        config: the job.
        optimizer: whose rates it sets.
        total_steps: steps of the whole run.
    """
    if config.lr_schedule == "constant" and not config.warmup:
        return None
    return LambdaLR(
        optimizer,
        lambda step: rate_factor(
            step, total_steps=total_steps, warmup=config.warmup, shape=config.lr_schedule
        ),
    )


def rate_factor(step: int, *, total_steps: int, warmup: float, shape: str) -> float:
    """What the learning rate is multiplied by in one step, from 0 to 1.

    Args:
        step: steps made so far.
        total_steps: steps of the run.
        warmup: share of them in which the factor rises.
        shape: ``constant``, ``linear`` or ``cosine``.

    >>> [rate_factor(n, total_steps=4, warmup=0.5, shape="linear") for n in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = round(warmup * total_steps)
    if step < rising:
        return (step + 1) / rising  # not from 0: a step that moves nothing would be lost
    done = min(1.0, (step - rising) / max(1, total_steps - rising))
    if shape == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done)) if shape == "cosine" else 1.0
