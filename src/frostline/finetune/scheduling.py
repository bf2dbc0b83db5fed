"""The schedule of a job: read from the configuration, put to work on the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from frostline.errors import ConfigError, ScheduleError
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.prepare import Setup
from frostline.freezer import Freezer
from frostline.schedules import Schedule, from_plain, load, registry
from frostline.selection import where

_ENDINGS = (".yaml", ".yml")


def schedule_of(config: FinetuneConfig) -> Schedule | None:
    """The schedule that the configuration asks for; None if a plan alone says what trains.

    Raises:
        ScheduleError: (a ValueError) no such name or file, or an option that does not fit.

    >>> schedule_of(FinetuneConfig(schedule={"schedule": "lisa", "period": 3}))
    LISA(layers=None, period=3, seed=0)
    """
    asked = config.schedule
    if asked is None:
        return None
    if isinstance(asked, str):
        is_file = asked.endswith(_ENDINGS) or "/" in asked or Path(asked).is_file()
        if asked not in registry and is_file:
            return load(Path(asked), base_lr=config.lr)
        return from_plain(asked, source="--schedule")
    if not isinstance(asked, Mapping):
        return from_plain({"schedule": "explicit", "phases": asked})
    if "phases" in asked:
        return from_plain({"schedule": "explicit", **asked})
    return from_plain(asked)


def start_freezer(
    schedule: Schedule,
    config: FinetuneConfig,
    setup: Setup,
    scheduler: object = None,
    note: Callable[[str], None] = lambda text: None,
) -> Freezer:
    """Have the schedule freeze and thaw the job's model, all of it but what its plan froze.

    Args:
        schedule: when to freeze what.
        config: the job.
        setup: the model, with what the schedule is to leave as it is already frozen.
        scheduler: what sets the optimizer's rates, if anything does.
        note: told in one line what the freezer has assumed.

    Raises:
        ScheduleError: (a ValueError) the schedule does not suit the model.
    """
    fixed = frozenset(setup.frozen.names)
    steps = steps_per_epoch(setup, config)
    try:
        freezer = Freezer(
            setup.model,
            setup.optimizer,
            scheduler,
            schedule,
            "ddp" if setup.engine.ranks > 1 else None,
            total_steps=config.epochs * steps,
            # A gradient scaler leaves steps out: how many an epoch has is known when it has ended.
            steps_per_epoch=None if config.mixed_precision == "fp16" else steps,
            fixed=where(lambda name, parameter: name in fixed) if fixed else None,
        )
    except ScheduleError as error:
        if not fixed:
            raise
        raise ScheduleError(
            f"{error}. What the plan freezes ({setup.frozen.plan}) is out of the schedule's reach:"
            " leave the plan out, or freeze less by it"
        ) from error
    for event in freezer.events:
        if event.kind == "note":
            note(f"schedule: {event.why}")
    return freezer


def steps_per_epoch(setup: Setup, config: FinetuneConfig) -> int:
    """Optimizer steps of one epoch."""
    return -(-len(setup.batches) // config.accumulate)


def resume_freezer(freezer: Freezer, state: Mapping[str, object], run: Path) -> None:
    """Go on as the checkpoint says; raises ConfigError if it does not fit."""
    try:
        freezer.load_state_dict(state)
    except ValueError as error:
        raise ConfigError(f"{run} can't be resumed: {error}") from error
