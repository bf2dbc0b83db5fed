"""A plain training loop: seeded epochs, cross-entropy, accuracy.

It knows nothing about freezing. That is the point: ``model.train()`` at the head of every epoch
is what each loop does, and frozen layers have to stay frozen through it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TypeAlias

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError
from frostline.finetune.data import Split

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Inputs and targets."""

Feed: TypeAlias = Callable[[Split, Sequence[Tensor]], Generator[Batch, None, None]]
"""``feed(split, parts)``: the batches of a split at these positions, one after another."""


def plain_feed(split: Split, parts: Sequence[Tensor]) -> Generator[Batch, None, None]:
    """Take each batch from the scans.

    >>> split = Split(inputs=torch.arange(3.0), targets=torch.arange(3))
    >>> next(plain_feed(split, [torch.tensor([2, 0])]))
    (tensor([2., 0.]), tensor([2, 0]))
    """
    for positions in parts:
        yield split.inputs[positions], split.targets[positions]


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: Split,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    after_step: Callable[[float], None] = lambda loss: None,
    feed: Feed = plain_feed,
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
        feed: gives the batches; it must not draw from the global generator.

    Returns:
        The mean loss over the scans, in nats.

    Raises:
        ConfigError: the loss is no longer finite.
    """
    torch.manual_seed(epoch_seed(seed, epoch))
    model.train()
    total = 0.0
    with closing(feed(split, batches(len(split), batch_size))) as fed:
        for inputs, targets in fed:
            optimizer.zero_grad()
            loss = batch_loss(model, inputs, targets)
            value = loss.item()
            if not math.isfinite(value):
                raise ConfigError(f"the loss became {value} in epoch {epoch}; try a lower lr")
            # torch leaves this method unannotated.
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += value * len(targets)
            after_step(value)
    return total / len(split)


def batch_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of one batch, a scalar in nats."""
    return nn.functional.cross_entropy(model(inputs), targets)


def accuracy(
    model: nn.Module, split: Split, *, batch_size: int = 256, feed: Feed = plain_feed
) -> float:
    """Share of ``split`` that ``model`` labels correctly, from 0 to 1; leaves it in eval mode."""
    model.eval()
    right = 0
    parts = torch.split(torch.arange(len(split)), batch_size)
    with torch.no_grad(), closing(feed(split, parts)) as fed:
        for inputs, targets in fed:
            right += int((model(inputs).argmax(dim=1) == targets).sum())
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
