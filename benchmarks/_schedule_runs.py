"""One training run under one schedule, with or without replay: its time, accuracy and bits."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any

import torch
import torch.nn.functional as F
from _schedule_tasks import Task
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline import schedules

FULL, AGAIN, HEAD = "full", "full again", "way four"


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train.

    Attributes:
        name: for the tables.
        schedule: builds the schedule for a task and a seed; None trains without a freezer.
        options: those that are not the schedule's defaults, in words.
        by_hand: whether all but the head is frozen by hand.
    """

    name: str
    schedule: Callable[[Task, int], schedules.Schedule] | None = None
    options: str = ""
    by_hand: bool = False

    @property
    def label(self) -> str:
        """Name and options."""
        return f"{self.name} ({self.options})" if self.options else self.name

    @property
    def slug(self) -> str:
        """The label as part of a file's name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.label).strip("-")


def _halves(task: Task, seed: int) -> schedules.Explicit:
    """Everything for a fifth of the run, then the last block and the head."""
    return schedules.Explicit(
        [
            {"epoch": 0, "train": ["**"]},
            {"epoch": max(1, task.epochs // 5), "train": ["head", "blocks:last:1"]},
        ]
    )


# Options other than the defaults are from the methods' cards; Plasticity's period, the learning
# rates and the networks were settled in trial runs on the same tasks.
WAYS = (
    Way(name=FULL),
    Way(name=AGAIN),
    Way(name=HEAD, by_hand=True, options="head alone, frozen by hand"),
    Way(name="alpha", schedule=lambda task, seed: schedules.Alpha()),
    Way(
        name="alpha",
        schedule=lambda task, seed: schedules.Alpha(alpha=0.2),
        options="alpha=0.2",
    ),
    Way(name="autofreeze", schedule=lambda task, seed: schedules.AutoFreeze()),
    Way(
        name="autofreeze",
        schedule=lambda task, seed: schedules.AutoFreeze(looks_per_epoch=2),
        options="looks_per_epoch=2",
    ),
    Way(
        name="plasticity",
        schedule=lambda task, seed: schedules.Plasticity(period=2),
        options="period=2",
    ),
    Way(name="freezeout", schedule=lambda task, seed: schedules.FreezeOut()),
    Way(name="lpft", schedule=lambda task, seed: schedules.LPFT()),
    Way(name="gradual-unfreeze", schedule=lambda task, seed: schedules.GradualUnfreeze()),
    Way(
        name="explicit",
        schedule=_halves,
        options="all, then the last block",
    ),
    Way(
        name="surgical",
        schedule=lambda task, seed: schedules.SurgicalBlock(blocks=(-1,)),
        options="blocks=(-1,)",
    ),
    Way(name="lisa", schedule=lambda task, seed: schedules.LISA(seed=seed)),
    Way(name="badam", schedule=lambda task, seed: schedules.BAdam(seed=seed)),
    Way(name="apf", schedule=lambda task, seed: schedules.APF()),
    Way(name="autorgn", schedule=lambda task, seed: schedules.AutoRGN()),
    Way(name="spectrum", schedule=lambda task, seed: schedules.Spectrum()),
)


def run(
    task: Task, way: Way, *, replay: bool, seed: int, epochs: int | None = None
) -> dict[str, Any]:
    """Train, and say what came of it, as plain values; fewer epochs are for warming up.

    The time is that of training with all that belongs to it: schedule, transitions, proofs,
    loading. Measuring the accuracy is left out; it is the same work for all.
    """
    torch.manual_seed(seed)
    model = task.model()
    loader = task.loader(seed)
    clock = _Clock()
    gc.collect()
    with clock:
        trains = "head" if way.by_hand else None
        if trains:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(f"{trains}."))
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=task.lr)
        freezer = None
        if way.schedule is not None:
            freezer = fl.Freezer(
                model,
                optimizer,
                schedule=way.schedule(task, seed),
                steps_per_epoch=task.steps_per_epoch,
                total_steps=task.epochs * task.steps_per_epoch,
            )
    for _ in range(epochs or task.epochs):
        with clock:
            model.train()
            if trains:
                for name, child in model.named_children():
                    child.train(name == trains)
            for inputs, targets in fl.replay(model, loader) if replay else loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs), targets)
                # torch leaves backward unannotated.
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if freezer is not None:
                    freezer.step(loss)
        metric = accuracy(model, task.validation)
        if freezer is not None:
            with clock:
                freezer.epoch(metric)
    stats = fl.replay(model, loader).replayer if replay else None
    return {
        "task": task.name,
        "what": task.what,
        "way": way.label,
        "replay": replay,
        "seed": seed,
        "cpu_seconds": clock.cpu,
        "wall_seconds": clock.wall,
        "accuracy": accuracy(model, task.test),
        "frozen": _frozen_shares(task, freezer, by_hand=_share_by_hand(model)),
        "replayed": stats.stats.replayed if stats else 0,
        "steps": task.epochs * task.steps_per_epoch,
        "declined": stats.declined if stats else None,
        "bits": [fl.fingerprint(tensor) for tensor in model.state_dict().values()],
    }


class _Clock:
    """Seconds spent inside, of the processor and of the day."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def __enter__(self) -> None:
        self._began = process_time(), perf_counter()

    def __exit__(self, *_: object) -> None:
        self.cpu += process_time() - self._began[0]
        self.wall += perf_counter() - self._began[1]


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """The share that the model labels as it should, from 0 to 1; leaves it in eval mode."""
    model.eval()
    inputs, targets = data.tensors
    with torch.no_grad():
        right: Tensor = model(inputs).argmax(dim=1) == targets
    return right.double().mean().item()


def _share_by_hand(model: nn.Module) -> float:
    total = sum(p.numel() for p in model.parameters())
    return sum(p.numel() for p in model.parameters() if not p.requires_grad) / total


def _frozen_shares(
    task: Task, freezer: fl.Freezer | None, *, by_hand: float
) -> list[tuple[int, float]]:
    """From which step on which share of the parameters was frozen."""
    if freezer is None:
        return [(0, by_hand)]
    size = {unit.name: unit.numel for unit in freezer.layout.units}
    total = sum(size.values())
    rows = freezer.timeline()
    return [(row.step, sum(size[name] for name in row.frozen) / total) for row in rows]
