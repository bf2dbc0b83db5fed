"""A plain training loop: seeded epochs, cross-entropy, accuracy.

It knows nothing about freezing. That is the point: ``model.train()`` at the head of every epoch
is what each loop does, and frozen layers have to stay frozen through it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError
from frostline.finetune.data import Split


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: Split,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    after_step: Callable[[float], None] = lambda loss: None,
) -> float:
    """Train once on every scan of ``split``, in an order drawn from ``(seed, epoch)``.

    Seeds the global generator (dropout draws from it) from the same pair, so an epoch does the
    same whether the ones before it ran in this process or in another.

    Args:
        model: maps (batch, 1, 8, 8) to logits of shape (batch, classes).
        optimizer: steps once a batch.
        split: the scans, on the model's device.
        batch_size: scans a step; see :func:`batches` for the last one.
        seed: the run's seed.
        epoch: number of the epoch, from 1.
        after_step: called after every step with its loss.

    Returns:
        The mean loss over the scans, in nats.

    Raises:
        ConfigError: the loss is no longer finite.
    """
    torch.manual_seed(epoch_seed(seed, epoch))
    model.train()
    total = 0.0
    for positions in batches(len(split), batch_size):
        optimizer.zero_grad()
        loss = batch_loss(model, split.inputs[positions], split.targets[positions])
        value = loss.item()
        if not math.isfinite(value):
            raise ConfigError(f"the loss became {value} in epoch {epoch}; try a lower lr")
        # torch leaves this method unannotated.
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += value * len(positions)
        after_step(value)
    return total / len(split)


def batch_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of one batch, a scalar in nats."""
    return nn.functional.cross_entropy(model(inputs), targets)


def accuracy(model: nn.Module, split: Split, *, batch_size: int = 256) -> float:
    """Share of ``split`` that ``model`` labels correctly, from 0 to 1; leaves it in eval mode."""
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(split), batch_size):
            scans = slice(start, start + batch_size)
            guesses = model(split.inputs[scans]).argmax(dim=1)
            right += int((guesses == split.targets[scans]).sum())
    return right / len(split)


def batches(count: int, batch_size: int) -> list[Tensor]:
    """The positions 0 to ``count - 1`` shuffled by the global generator, ``batch_size`` at a time.

    The last batch is smaller where they don't divide; if it would be a single position it joins
    the batch before, since BatchNorm can't train on one sample without spatial size.
    """
    parts = list(torch.split(torch.randperm(count), batch_size))
    if batch_size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        alone = parts.pop()
        parts[-1] = torch.cat([parts[-1], alone])
    return parts


def batch_count(count: int, batch_size: int) -> int:
    """Steps an epoch: how many batches :func:`batches` makes.

    >>> batch_count(64, 32), batch_count(65, 32), batch_count(66, 32)
    (2, 2, 3)
    """
    whole, rest = divmod(count, batch_size)
    return max(1, whole + (rest > 1))


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch; neighbouring pairs give unrelated ones."""
    digest = hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch takes 63 bits
