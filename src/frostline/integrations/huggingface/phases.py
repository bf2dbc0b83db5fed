"""A schedule that is carried out by the Trainer's events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerState, TrainingArguments

from frostline.errors import ScheduleError
from frostline.freezer import Freezer
from frostline.freezing import Frozen
from frostline.schedules import Schedule
from frostline.selection import where


class Phases:
    """A freezer over one training, fed by events.

    Args:
        freezer: carries the schedule out.
        metric: name of the metric that ends phases, as the Trainer reports it.
    """

    def __init__(self, freezer: Freezer, metric: str) -> None:
        self.freezer = freezer
        self._metric = metric
        self._latest: float | None = None
        self._is_awaiting = False

    def end_epoch(self, *, is_evaluated_next: bool) -> None:
        """An epoch is over; if an evaluation follows at once, wait for its metric."""
        self._is_awaiting = is_evaluated_next
        if not is_evaluated_next:
            self._tell()

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """An evaluation has brought its metrics."""
        self._latest = metrics.get(self._metric)
        if self._is_awaiting:
            self._tell()

    def state_dict(self) -> dict[str, Any]:
        """The freezer's state, of the optimizer only which parameters it trains.

        The rest of the optimizer's state is beside it, in the same file.
        """
        state = self.freezer.state_dict()
        return {**state, "optimizer": {"trainable": state["optimizer"]["trainable"]}}

    def _tell(self) -> None:
        self._is_awaiting = False
        metric, self._latest = self._latest, None
        position = self.freezer.position
        made = position.step - position.epoch_began
        # An epoch that ended by itself is not told of twice; one that was cut short is none.
        if made and position.per_epoch_given in (None, made):
            self.freezer.epoch(metric)


def start_phases(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    base: Frozen | None,
    args: TrainingArguments,
    state: TrainerState,
    loader: object,
) -> Phases:
    """Begin a schedule on all of the model but what is frozen for good.

    Args:
        model: the model, without wrappers.
        optimizer: the Trainer's, without wrapper, holding all that the schedule may thaw.
        schedule: when to freeze what.
        base: what is frozen for good.
        args: the Trainer's arguments.
        state: the Trainer's state; it knows how long the run is.
        loader: the training batches.
    """
    fixed = frozenset(base.names) if base is not None else frozenset()
    freezer = Freezer(
        model,
        optimizer,
        schedule=schedule,
        total_steps=state.max_steps,
        steps_per_epoch=_steps_per_epoch(args, loader),
        fixed=where(lambda name, parameter: name in fixed) if fixed else None,
    )
    metric = args.metric_for_best_model or "loss"
    return Phases(freezer, metric if metric.startswith("eval_") else f"eval_{metric}")


def resume_phases(
    phases: Phases, saved: Mapping[str, Any] | None, by_name: Mapping[str, Any]
) -> None:
    """Go on as a checkpoint says.

    Args:
        phases: just begun.
        saved: what :meth:`Phases.state_dict` gave, out of the checkpoint; None if it had none.
        by_name: the optimizer's state as it came out of the checkpoint.

    Raises:
        ScheduleError: (a ValueError) the checkpoint is of a run without a schedule, or with
            another one, or of another model.
    """
    if saved is None:
        raise ScheduleError(
            "the checkpoint has no schedule's state, so it can't be told in which phase it is:"
            " resume with the callback of the run that wrote it, or begin a new run from the"
            " checkpoint's weights, without resume_from_checkpoint"
        )
    phases.freezer.load_state_dict({**saved, "optimizer": {**by_name, **saved["optimizer"]}})


def _steps_per_epoch(args: TrainingArguments, loader: object) -> int | None:
    """Optimizer steps of an epoch, where they are known and each of them will be made."""
    if args.fp16 or not isinstance(loader, Sized):  # a gradient scaler leaves steps out
        return None
    return math.ceil(len(loader) / args.gradient_accumulation_steps)
