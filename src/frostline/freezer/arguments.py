"""What a freezer is given, and what a schedule answers, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch.optim import Optimizer

from frostline.errors import OptimizerError, ScheduleError
from frostline.optim.wrappers import bare_optimizer
from frostline.proof.trial import moves_without_gradient
from frostline.schedules import (
    Decision,
    Explicit,
    Layout,
    Progress,
    Schedule,
    Traits,
    from_plain,
    registry,
)


def as_schedule(given: object) -> Schedule:
    """A schedule as it is, or by its name, its plain form, or a list of phases.

    >>> as_schedule("lisa")
    LISA(layers=None, period=5, seed=0)
    """
    if isinstance(given, str | Mapping):
        return from_plain(given)
    if isinstance(given, Schedule) and not isinstance(given, type):
        return given
    if isinstance(given, Iterable) and not isinstance(given, type):
        return Explicit(given)
    raise ScheduleError(
        "expected a schedule, such as fl.schedules.GradualUnfreeze(), or a name"
        f" ({', '.join(sorted(registry))}), got {given!r:.60}"
    )


def inner_optimizer(given: object) -> Optimizer:
    """The optimizer of which the steps are made: without a wrapper such as Accelerate's."""
    if not isinstance(given, Optimizer):
        raise OptimizerError(
            f"expected a torch.optim.Optimizer, got {type(given).__name__}; fl.Freezer takes the"
            " model, then the optimizer"
        )
    return bare_optimizer(given)


def base_rate(optimizer: Optimizer) -> float:
    """The learning rate that a scheduler starts from, or the present one where there is none."""
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))


def present_rate(optimizer: Optimizer, base: float) -> float:
    """The learning rate now, relative to ``base``."""
    return float(optimizer.param_groups[0]["lr"]) / base if base > 0 else 1.0


def moments_for(optimizer: Optimizer, traits: Traits) -> Literal["fresh", "keep"]:
    """What the schedule wants of optimizer state, where the optimizer can give it.

    One that moves parameters without a gradient must not hold frozen ones.
    """
    if traits.moments == "fresh":
        return "fresh"
    moves = moves_without_gradient(type(optimizer), optimizer.defaults)
    return "fresh" if moves else "keep"


def checked_metric(metric: float | None, *, wanted: bool, schedule: Schedule) -> float | None:
    """The metric as a number.

    Raises:
        ScheduleError: the schedule goes by it and it is not finite.
    """
    value = None if metric is None else float(metric)
    if value is not None and wanted and not math.isfinite(value):
        raise ScheduleError(
            f"{schedule.name} goes by the metric, and it is {value}: a run that diverged has no"
            " best epoch. Lower the learning rate, or leave the metric out of freezer.epoch()"
        )
    return value


def checked_decision(decision: Decision, progress: Progress, schedule: Schedule) -> Decision:
    """The decision, if it can be carried out.

    Raises:
        ScheduleError: it leaves nothing to train, or names units that the model does not have.
    """
    layout = progress.layout
    named = [("train", decision.train or ()), ("rates", decision.rates or {})]
    for where, names in named:
        unknown = sorted(set(names) - layout.names)
        if unknown:
            raise ScheduleError(
                f"{schedule.name} names {unknown[0]!r} in {where}, which is no unit of the model"
            )
    if decision.train is not None and not decision.train:
        raise ScheduleError(f"{schedule.name} would leave nothing to train at step {progress.step}")
    return decision


def units_that_train(layout: Layout) -> frozenset[str]:
    """Names of the units of which a parameter trains as the model stands.

    Raises:
        ScheduleError: none does.
    """
    training = {
        name
        for group in layout.inventory.groups
        for name, parameter in group.named.items()
        if parameter.requires_grad
    }
    found = [unit.name for unit in layout.units if not training.isdisjoint(unit.parameters)]
    if not found:
        raise ScheduleError(
            "nothing trains before the schedule's first phase: begin with epoch: 0, or leave a"
            " part of the model trainable"
        )
    return frozenset(found)


def length_note(
    traits: Traits, *, total_steps: int | None, steps_per_epoch: int | None
) -> str | None:
    """What is assumed about the run's length, if the schedule goes by it and nobody said."""
    missing: list[Any] = [
        option
        for option, value in (("total_steps", total_steps), ("steps_per_epoch", steps_per_epoch))
        if value is None
    ]
    if not traits.paced or not missing:
        return None
    return (
        f"{' and '.join(missing)} not given: 100 steps an epoch are assumed until the first has"
        " ended, and 10 epochs"
    )
