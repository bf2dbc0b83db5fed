"""A run on several ranks, and the same run in one process, to be compared bit for bit.

Each rank computes the mean loss over its share of a batch, and DistributedDataParallel averages
the gradients. One process computes the shares one after the other, each divided by the number of
ranks, so with two ranks the same two numbers are added for each gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl

PHASES = [
    {"epoch": 0, "train": ["4"]},
    {"step": 2, "train": ["**"]},
    {"step": 4, "train": ["1", "4"]},
    {"step": 6, "train": ["3", "4"]},
    {"step": 8, "train": ["0", "2", "4"]},
]
STEPS = 10


def network() -> nn.Sequential:
    """Four layers and a head, 6 → 3, without anything that depends on the rest of a batch."""
    torch.manual_seed(1)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh()) for _ in range(4)]
    return nn.Sequential(*layers, nn.Linear(6, 3))


def share(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """A rank's inputs and targets in a step."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(4, 6, generator=generator), torch.arange(4) % 3


def loss_of(model: Callable[[Tensor], Tensor], step: int, rank: int) -> Tensor:
    """The mean over a rank's share."""
    inputs, targets = share(step, rank)
    return nn.functional.cross_entropy(model(inputs), targets)


def bits(model: nn.Module) -> dict[str, str]:
    """Name → fingerprint of each tensor."""
    return {name: fl.fingerprint(tensor) for name, tensor in model.state_dict().items()}


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that remembers, so that a gradient that differs once shows for good."""
    return fl.optimizer(torch.optim.AdamW, model, lr=0.02, weight_decay=0.1)


def weights(model: nn.Module) -> list[float]:
    """All parameters, one after the other."""
    return [float(x) for p in model.parameters() for x in p.detach().flatten()]


def alone(*, ranks: int = 2, phases: Any = PHASES) -> nn.Module:
    """The model after the run in one process."""
    model = network()
    optimizer = adam(model)
    freezer = fl.Freezer(model, optimizer, schedule=phases, total_steps=STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(ranks):
            (loss_of(model, step, rank) / ranks).backward()
        optimizer.step()
        freezer.step()
    return model


def together(
    rank: int,
    options: dict[str, Any] | None = None,
    *,
    given: str = "wrapper",
    phases: Any = PHASES,
    counted: bool = True,
) -> dict[str, Any]:
    """The run on this rank.

    Args:
        rank: this rank.
        options: for DistributedDataParallel.
        given: what the freezer is given: the ``wrapper``; the ``bare`` model and
            ``distributed="ddp"``; the ``inner`` model of a wrapper; or the model, wrapped ``late``.
        phases: the schedule.
        counted: whether a hook counts what is reduced.
    """
    model = network()
    optimizer = adam(model)
    reduced: list[int] = [0]
    wrapper = None
    if given in ("wrapper", "inner"):
        wrapper = DistributedDataParallel(model, **(options or {}))
    freezer = fl.Freezer(
        wrapper if wrapper is not None and given == "wrapper" else model,
        optimizer,
        schedule=phases,
        distributed="ddp" if given == "bare" else None,
        total_steps=STEPS,
    )
    if given == "late":
        wrapper = DistributedDataParallel(model, **(options or {}))
    wrapper = freezer.model if wrapper is None else wrapper
    assert isinstance(wrapper, DistributedDataParallel)
    if counted:
        wrapper.register_comm_hook(reduced, _count)
    trainable, frozen_grads = [], 0
    for step in range(STEPS):
        optimizer.zero_grad()
        reduced.append(0)
        loss_of(wrapper, step, rank).backward()
        trainable.append(sum(p.nbytes for p in model.parameters() if p.requires_grad))
        frozen_grads += sum(p.grad is not None for p in model.parameters() if not p.requires_grad)
        optimizer.step()
        freezer.step()
    return {
        "bits": bits(model),
        "weights": weights(model),
        "reduced": reduced[1:],
        "trainable": trainable,
        "frozen_grads": frozen_grads,
        "same wrapper": given == "late" or freezer.model is wrapper,
        "options": [getattr(wrapper, name) for name in options or {} if hasattr(wrapper, name)],
        "frozen": [row.frozen for row in freezer.timeline()],
    }


def _count(reduced, bucket):  # torch reads a hook's annotations, and wants them as objects
    """What DistributedDataParallel does by itself, and the bytes that it does it with."""
    buffer = bucket.buffer()
    reduced[-1] += buffer.nbytes
    buffer.div_(distributed.get_world_size())
    future = distributed.all_reduce(buffer, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])
