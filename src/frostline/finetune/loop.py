"""A plain training loop: seeded epochs, any loader, any model that has a loss.

It knows nothing about freezing. That is the point: ``model.train()`` at the head of every epoch
is what each loop does, and frozen layers have to stay frozen through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import ConfigError
from frostline.finetune.engine import Engine
from frostline.finetune.loading import epoch_seed, seed_generators

Batch: TypeAlias = Any
"""A mapping, which is given as ``model(**batch)``, or a pair of inputs and targets."""


class Epoch(Protocol):
    """One epoch of batches, as a ``DataLoader`` has them."""

    def __len__(self) -> int:
        """How many batches there are."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """The batches."""
        ...


def train_epoch(
    model: Callable[[], nn.Module],
    optimizer: Optimizer,
    batches: Epoch,
    *,
    engine: Engine,
    seed: int,
    epoch: int,
    accumulate: int = 1,
    after_step: Callable[[float], None] = lambda loss: None,
) -> tuple[float, int]:
    """Train once on every batch.

    Seeds the global generators (dropout and random samples draw from them) from ``(seed, epoch)``,
    so an epoch does the same whether the ones before it ran in this process or in another.

    Args:
        model: gives what is to be called; asked before each step, since a schedule may wrap it
            anew.
        optimizer: steps once for each ``accumulate`` batches.
        batches: one epoch of them; they must not draw from the global generator.
        engine: where it is computed.
        seed: the run's seed.
        epoch: number of the epoch, from 1.
        accumulate: batches whose gradients make one step; what is left at the end makes one too.
        after_step: called after every step with its loss.

    Returns:
        The sum of the samples' losses, in nats, and how many there were, in this process.

    Raises:
        ConfigError: the loss is no longer finite.
    """
    seed_generators(epoch_seed(seed, epoch, engine.rank))
    model().train()
    total, count, losses = 0.0, 0, list[float]()
    with stream_of(batches) as stream:
        for place, batch in enumerate(stream):
            first = place - place % accumulate
            share = min(accumulate, len(batches) - first)
            is_last = place - first == share - 1
            called = model()
            if place == first:
                optimizer.zero_grad()
                losses = []
            with engine.quiet(called, when=not is_last):
                with engine.autocast():
                    loss = batch_loss(called, engine.to_device(batch))
                losses.append(_finite(loss.item(), epoch))
                engine.backward(loss / share if share > 1 else loss)
            size = batch_size(batch)
            total, count = total + losses[-1] * size, count + size
            if is_last:
                optimizer.step()
                after_step(sum(losses) / len(losses))
    return total, count


def batch_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean loss of one batch, a scalar in nats: the model's own, or the cross-entropy of a pair."""
    if isinstance(batch, Mapping):
        loss: Tensor = model(**batch).loss
        return loss
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets)


def model_inputs(batch: Batch) -> Any:
    """What the model is called with: a mapping of all, or the first of a pair."""
    return batch if isinstance(batch, Mapping) else batch[0]


def batch_size(batch: Batch) -> int:
    """How many samples a batch has.

    >>> import torch
    >>> batch_size({"labels": torch.zeros(3)}), batch_size((torch.zeros(2, 8), torch.zeros(2)))
    (3, 2)
    """
    first = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[1]
    return len(first)


@contextmanager
def stream_of(batches: Epoch) -> Iterator[Iterator[Batch]]:
    """One epoch, ended where the loop is left: a replayed batch is replayed until then."""
    stream = iter(batches)
    try:
        yield stream
    finally:
        if isinstance(stream, Generator):
            stream.close()


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise ConfigError(f"the loss became {loss} in epoch {epoch}; try a lower lr")
    return loss
