"""A job put together: what trains what, where it is kept, and who is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from frostline.errors import ConfigError
from frostline.finetune.checkpointing import Progress, Saved, pack
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.engine import Engine
from frostline.finetune.interrupts import StopRequest
from frostline.finetune.metrics import MetricsFile
from frostline.finetune.prepare import Setup
from frostline.finetune.proving import Record
from frostline.finetune.rates import scheduler_of
from frostline.finetune.replaying import Replaying
from frostline.finetune.run_folder import RunFolder, State, Status
from frostline.finetune.scheduling import resume_freezer, start_freezer, steps_per_epoch
from frostline.finetune.watcher import Watcher
from frostline.freezer import Freezer
from frostline.schedules import Schedule


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What trains what, as it was prepared, anew or for a resumption.

    Attributes:
        config: the job.
        setup: model, data, optimizer.
        freezer: carries the schedule out, if there is one.
        scheduler: sets the optimizer's rates; None where they stay as they are.
        called: what the loop calls where no freezer decides about it: the model, or its wrapper.
        stepping: the optimizer that the loop steps.
        recorded: fingerprints of what the plan freezes, from the very start.
        base: fingerprints of the model from then.
        replaying: whether what is frozen is replayed.
        watcher: told how it goes.
    """

    config: FinetuneConfig
    setup: Setup
    freezer: Freezer | None
    scheduler: LRScheduler | None
    called: nn.Module
    stepping: Optimizer
    recorded: Record
    base: Mapping[str, str]
    replaying: Replaying
    watcher: Watcher

    @property
    def engine(self) -> Engine:
        """Where it is computed."""
        return self.setup.engine

    @property
    def frozen_now(self) -> tuple[str, ...]:
        """Names of what is frozen by the plan and by the schedule."""
        by_schedule = self.freezer.frozen if self.freezer is not None else ()
        return (*self.setup.frozen.names, *by_schedule)

    def model_to_call(self) -> nn.Module:
        """What the loop is to call now; a schedule may wrap it anew."""
        return self.freezer.model if self.freezer is not None else self.called

    def checkpoint(self, progress: Progress) -> bytes:
        """All that a resumption needs."""
        stateful = {"training": self.freezer or self.setup.optimizer, "engine": self.engine}
        states: dict[str, Any] = {name: each.state_dict() for name, each in stateful.items()}
        if self.scheduler is not None:
            states["rates"] = self.scheduler.state_dict()
        held = {name for prints in self.recorded.values() for name in prints}
        return pack(progress, self.setup.model, self.base, states, held=held)


def put_together(
    config: FinetuneConfig,
    setup: Setup,
    schedule: Schedule | None,
    *,
    recorded: Record,
    base: Mapping[str, str],
    watcher: Watcher,
) -> Job:
    """Make what trains the model, and find out whether what is frozen is to be replayed.

    Args:
        config: the job.
        setup: model, data, optimizer.
        schedule: when to freeze what; None where the plan alone decides.
        recorded: fingerprints of what the plan freezes.
        base: fingerprints of the model.
        watcher: told how it goes.

    Raises:
        FrostlineError: the schedule does not suit the model, or the store can't be opened.
    """
    scheduler = scheduler_of(
        config, setup.optimizer, total_steps=config.epochs * steps_per_epoch(setup, config)
    )
    freezer = None
    if schedule is not None:
        freezer = start_freezer(schedule, config, setup, scheduler, watcher.note)
    return Job(
        config=config,
        setup=setup,
        freezer=freezer,
        scheduler=scheduler,
        called=setup.model if freezer is not None else setup.engine.spread(setup.model),
        stepping=setup.engine.stepping(setup.optimizer),
        recorded=recorded,
        base=base,
        replaying=Replaying(config, setup, watcher.note),
        watcher=watcher,
    )


def go_on(job: Job, saved: Saved, folder: RunFolder) -> None:
    """Bring a job to where a checkpoint was taken; the model has its weights already.

    Raises:
        ConfigError: the checkpoint is of another plan or schedule.
    """
    state = saved.states["training"]
    if job.freezer is not None:
        resume_freezer(job.freezer, state, folder.path)
    else:
        try:
            job.setup.optimizer.load_state_dict(state)
        except ValueError as error:
            raise ConfigError(
                f"{folder.path} can't be resumed, its plan changed: {error}"
            ) from error
    if job.scheduler is not None and "rates" in saved.states:
        job.scheduler.load_state_dict(saved.states["rates"])
    job.engine.load_state_dict(saved.states["engine"])


@dataclass(kw_only=True, eq=False)
class Run:
    """A job with its folder in this process.

    Attributes:
        job: what trains what.
        folder: where it is kept.
        metrics: a line for each epoch.
        progress: what is on disk.
        stop: whether someone asked to stop.
    """

    job: Job
    folder: RunFolder
    metrics: MetricsFile
    progress: Progress
    stop: StopRequest

    def set_status(self, state: State, message: str, *, resumable: bool, next: str) -> None:
        """Write how the run stands; raises OutputError."""
        self.folder.set_status(
            Status(
                state=state,
                epoch=self.progress.epoch,
                epochs=self.job.config.epochs,
                resumable=resumable,
                message=message,
                next=next,
            )
        )

    def obey(self) -> None:
        """Raise ``KeyboardInterrupt`` in every process once one of them was asked to stop."""
        self.stop.made = self.job.engine.any(self.stop.made)
        self.stop.obey()
