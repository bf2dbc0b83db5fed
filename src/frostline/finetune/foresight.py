"""What a job will need: memory, foretold without computing it, and time, by a few steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from frostline.errors import ConfigError, FrostlineError
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.loop import batch_loss
from frostline.finetune.prepare import Setup, first_batch
from frostline.measure import Prediction, predict, step_times
from frostline.naming import tensor_bytes
from frostline.units import format_bytes

_SIGNS = ("can't allocate memory", "not enough memory", "out of memory")
"""What the RuntimeError of an allocator says that has no error class of its own (the CPU's)."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a training step holds in memory.

    Attributes:
        weight_bytes: parameters and buffers.
        step: gradients, optimizer state and activations.
    """

    weight_bytes: int
    step: Prediction

    @property
    def total_bytes(self) -> int:
        """All of it."""
        step = self.step
        return (
            self.weight_bytes
            + step.gradient_bytes
            + step.optimizer_state_bytes
            + step.activation_bytes
        )


def memory_needed(setup: Setup, config: FinetuneConfig) -> Need:
    """Foretell the memory of a step; nothing is computed, and nothing changes.

    Raises:
        MeasureError: (a RuntimeError) the model can't be run without content.
    """
    model = setup.model
    model.train()
    return Need(
        weight_bytes=sum(map(tensor_bytes, (*model.parameters(), *model.buffers()))),
        step=predict(
            model,
            first_batch(setup, config.batch_size),
            batch_loss,
            optimizer=setup.make_optimizer,
        ),
    )


def step_seconds(setup: Setup, config: FinetuneConfig) -> float:
    """Median time of a step, from a few on a copy of the model."""
    model = copy.deepcopy(setup.model).train()
    optimizer, batch = setup.make_optimizer(model), first_batch(setup, config.batch_size)

    def step() -> None:
        optimizer.zero_grad()
        with setup.engine.autocast():
            loss = batch_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    with torch.random.fork_rng(devices=[]):
        return step_times({"step": step}, warmup=1, repeats=3)["step"].median_seconds


@contextmanager
def memory_errors_explained(setup: Setup, config: FinetuneConfig) -> Iterator[None]:
    """Turns running out of memory into one line that says what would be needed, and what helps.

    Raises:
        ConfigError: in place of the allocator's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, FrostlineError) or not _is_out_of_memory(error):
            raise
        raise ConfigError(_explanation(setup, config)) from error


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(sign in str(error).lower() for sign in _SIGNS)


def _explanation(setup: Setup, config: FinetuneConfig) -> str:
    text = f"out of memory on {setup.engine.device}"
    try:
        need = memory_needed(setup, config)
        activations = format_bytes(need.step.activation_bytes)
        text += (
            f": a step of {config.batch_size} samples needs about"
            f" {format_bytes(need.total_bytes)}, of which {activations} are activations"
        )
    # The model may not run without content; then what helps is all that can be said.
    except Exception:
        text += f" in a step of {config.batch_size} samples"
    half = max(1, config.batch_size // 2)
    return (
        f"{text}. Take batch_size: {half} with accumulate: {config.accumulate * 2},"
        + (" a lower max_length," if config.max_length else "")
        + " or train less, from the head down"
    )
