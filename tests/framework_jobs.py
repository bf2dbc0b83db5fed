"""One job for every framework: what to train, and what came out; small, but with every hazard.

``framework_huggingface``, ``framework_lightning`` and ``framework_accelerate`` each have a
``run(job)``; ``contracts/test_integrations.py`` holds all of them to the same promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

import frostline as fl

WIDTH = 16
CLASSES = 3
SAMPLES = 44
BATCH = 8
STEPS = 6
"""Batches of an epoch; the last holds 4 samples."""

HEAD = fl.Plan.all_but(["blocks.2", "head"])
"""The plan of most tests: two of three blocks frozen, BatchNorm in both parts."""


class Block(nn.Module):
    """Residual; statistics and dropout, so that modes, buffers and random numbers matter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.drop = nn.Dropout(0.1)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.drop(torch.tanh(self.up(self.norm(x)))))


class Network(nn.Module):
    """``(batch, 16)`` and labels in, a dict of loss and logits out, as Hugging Face models do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.blocks(self.stem(x)))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Samples(Dataset[dict[str, Tensor]]):
    """Dicts of ``x`` (16 floats) and ``labels`` (a class); always the same."""

    def __init__(self, count: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(7)
        self._x = torch.randn(count, WIDTH, generator=generator)
        self._labels = torch.randint(CLASSES, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self._x[index], "labels": self._labels[index]}


class EpochShuffle(Sampler[int]):
    """Shuffles by seed and epoch, so that a resumed epoch has the order that it would have had.

    For frameworks that put no random state into their checkpoints; they call ``set_epoch``.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1000 * self._seed + self._epoch)
        yield from torch.randperm(self._count, generator=generator).tolist()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train.

    Attributes:
        out: an empty folder for checkpoints.
        model: makes the model; it is called under ``seed``.
        data: makes the training data.
        plan: what ``FrostlineCallback(plan=…)`` takes; None with a schedule, or for none of both.
        schedule: what ``FrostlineCallback(schedule=…)`` takes.
        replay: as ``FrostlineCallback(replay=…)``.
        epochs: how many the whole run has, also where it stops earlier.
        batch_size: samples of a micro-batch.
        accumulate: micro-batches of an optimizer step.
        seed: of the model's weights, the order of the samples and dropout.
        stop_after: optimizer steps after which a checkpoint is written and the run ends.
        resume_from: the checkpoint to go on from.
    """

    out: Path
    model: Callable[[], nn.Module] = Network
    data: Callable[[], Dataset[dict[str, Tensor]]] = Samples
    plan: Any = None
    schedule: Any = None
    replay: bool = False
    epochs: int = 2
    batch_size: int = BATCH
    accumulate: int = 1
    seed: int = 0
    stop_after: int | None = None
    resume_from: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out.

    Attributes:
        losses: of each micro-batch that this run trained on, in order.
        initial: the weights and buffers before the first step, copied.
        weights: the weights and buffers after the last.
        frozen: names of the parameters that are frozen at the end.
        checkpoint: what ``resume_from`` takes, if the run stopped early.
        replayed: batches of which the frozen part was replayed.
    """

    losses: list[float]
    initial: dict[str, Tensor]
    weights: dict[str, Tensor]
    frozen: tuple[str, ...]
    checkpoint: Path | None = None
    replayed: int = 0


def seeded_model(job: Job) -> nn.Module:
    """The job's model, its weights drawn under the job's seed."""
    torch.manual_seed(job.seed)
    return job.model()


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights and buffers, cloned."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def frozen_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters without ``requires_grad``."""
    return tuple(name for name, p in model.named_parameters() if not p.requires_grad)
