"""What freezing saved: one training step with and without it, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from frostline.finetune.engine import Engine
from frostline.finetune.loop import Batch, batch_loss
from frostline.finetune.result import Cost, Savings
from frostline.measure import (
    gradient_bytes,
    optimizer_state_bytes,
    saved_activations,
    step_times,
)

_PATIENCE_SECONDS = 3.0
"""About how long the timing may take; fewer repeats make up for slow steps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    """One of the two models that are compared, ready to step."""

    model: nn.Module
    optimizer: Optimizer
    batch: Batch
    engine: Engine
    obey: Callable[[], None]

    def step(self) -> None:
        self.obey()
        self.optimizer.zero_grad()
        # torch leaves this method unannotated.
        self.loss().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def loss(self) -> torch.Tensor:
        with self.engine.autocast():
            return batch_loss(self.model, self.batch)

    def cost(self, step_seconds: float) -> Cost:
        """The costs of a step; at least one has been made."""
        return Cost(
            gradient_bytes=gradient_bytes(self.model),
            optimizer_state_bytes=optimizer_state_bytes(self.optimizer),
            activation_bytes=saved_activations(self.model, self.loss).activation_bytes,
            step_seconds=step_seconds,
        )


def measure_savings(
    frozen: nn.Module,
    full: nn.Module,
    make_optimizer: Callable[[nn.Module], Optimizer],
    batch: Batch,
    *,
    engine: Engine,
    obey: Callable[[], None] = lambda: None,
) -> Savings:
    """Train both models on ``batch`` for some steps, in turns, and measure what a step takes.

    Args:
        frozen: a model with a part frozen; its weights move.
        full: the same model with nothing frozen; its weights move.
        make_optimizer: makes the optimizer for either.
        batch: one batch, on the models' device.
        engine: where it is computed.
        obey: called before every step; may raise to stop.
    """
    sides = {
        name: _Side(
            model=model.train(),
            optimizer=make_optimizer(model),
            batch=batch,
            engine=engine,
            obey=obey,
        )
        for name, model in (("frozen", frozen), ("full", full))
    }
    start = time.perf_counter()
    for side in sides.values():
        side.step()
    repeats = int(_PATIENCE_SECONDS / (time.perf_counter() - start))
    times = step_times(
        {name: side.step for name, side in sides.items()},
        warmup=min(repeats, 3),
        repeats=min(max(repeats, 3), 30),
    )
    costs = {name: side.cost(times[name].median_seconds) for name, side in sides.items()}
    return Savings(frozen=costs["frozen"], full=costs["full"])
