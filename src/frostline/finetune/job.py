"""The fine-tuning job: train, keep what was reached, prove, measure, report. Prints nothing."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from frostline.errors import ConfigError, FrozenChangedError, OutputError, ScheduleError
from frostline.files import replace_atomically
from frostline.finetune import run_folder
from frostline.finetune.checkpointing import Progress, fill, pack, unpack
from frostline.finetune.config import FinetuneConfig, load_config
from frostline.finetune.data import Split
from frostline.finetune.interrupts import Interrupted, StopRequest, listening
from frostline.finetune.loop import accuracy, batch_count, train_epoch
from frostline.finetune.metrics import EpochMetrics, MetricsFile, open_metrics
from frostline.finetune.networks import BUILTIN
from frostline.finetune.prepare import Setup, plan_of, prepare, with_absolute_paths
from frostline.finetune.proving import Record, prove, prove_schedule, record
from frostline.finetune.replaying import Replaying
from frostline.finetune.result import Accuracy, Result, Savings, Trained
from frostline.finetune.run_folder import RunFolder, State, Status, create_run, json_bytes
from frostline.finetune.savings import measure_savings
from frostline.finetune.schedule_report import schedule_report, trained_by, write_timeline
from frostline.finetune.scheduling import resume_freezer, schedule_of, start_freezer
from frostline.finetune.threads import threads
from frostline.finetune.timeline import timeline_of
from frostline.finetune.watcher import Silent, Watcher
from frostline.freezer import Freezer
from frostline.freezing import Plan
from frostline.schedules import load, to_yaml


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """What trains what, as it was prepared, anew or for a resumption."""

    config: FinetuneConfig
    setup: Setup
    freezer: Freezer | None
    recorded: Record
    watcher: Watcher
    replaying: Replaying


@dataclass(kw_only=True, eq=False)
class _Run:
    """A job with its folder in this process; ``progress`` is what is on disk."""

    job: _Job
    folder: RunFolder
    metrics: MetricsFile
    progress: Progress
    stop: StopRequest

    def set_status(self, state: State, message: str, *, resumable: bool, next: str) -> None:
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


def start(config: FinetuneConfig, watcher: Watcher | None = None) -> Result:
    """Begin a new run and carry it to its end.

    Args:
        config: the job.
        watcher: told how it goes.

    Returns:
        What came out. The proof in it may have failed: look at ``result.proof.ok``.

    Raises:
        FrostlineError: the configuration does not fit, or the folder can't be written.
        Interrupted: a signal asked to stop; the run folder says how to go on.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as out:
    ...     result = start(FinetuneConfig(epochs=1, out=out))
    ...     sorted(file.name for file in result.run.iterdir())  # doctest: +NORMALIZE_WHITESPACE
    ['config.yaml', 'frozen.json', 'metrics.jsonl', 'model.safetensors', 'plan.yaml',
     'result.json', 'status.json']
    >>> result.proof.ok
    True
    """
    watcher = watcher or Silent()
    plan, schedule = plan_of(config), schedule_of(config)
    with _surroundings(config):
        setup = prepare(config, plan, watcher.note)
        recorded = record(setup.frozen)  # before the schedule freezes what will thaw again
        freezer = start_freezer(schedule, config, setup, watcher.note) if schedule else None
        replaying = Replaying(config, setup.model, setup.task, watcher.note)
        replaying.look(_frozen_now(setup, freezer))
        job = _Job(
            config=config,
            setup=setup,
            freezer=freezer,
            recorded=recorded,
            watcher=watcher,
            replaying=replaying,
        )
        before = accuracy(setup.model, setup.task.held_out, feed=replaying.feed)
        progress = Progress(epoch=0, accuracy_before=before, accuracy=before, seconds=0.0)
        with listening() as stop:
            folder = create_run(
                config.out,
                config.model.rpartition("/")[2],
                lambda folder: _first_files(folder, job, progress),
            )
            with open_metrics(folder.path / run_folder.METRICS) as metrics:
                return _carry_on(
                    _Run(job=job, folder=folder, metrics=metrics, progress=progress, stop=stop)
                )


def resume(path: Path, watcher: Watcher | None = None) -> Result:
    """Go on with a run that was cut short, as if it had not been: bit for bit the same weights.

    Args:
        path: the run's folder.
        watcher: told how it goes.

    Raises:
        ConfigError: it is finished, or its folder is damaged, or another process trains in it.
        FrostlineError: as from :func:`start`.
        Interrupted: again a signal asked to stop.
    """
    folder = RunFolder(path)
    folder.refuse_to_resume()  # before a file is made in what may be no run at all
    with open_metrics(path / run_folder.METRICS) as metrics:
        folder.refuse_to_resume()  # another process may have finished it until it let go
        config = load_config(path / run_folder.CONFIG)
        with _surroundings(config):
            return _resume(folder, config, metrics, watcher or Silent())


def _resume(
    folder: RunFolder, config: FinetuneConfig, metrics: MetricsFile, watcher: Watcher
) -> Result:
    recorded = cast(Record, folder.read_json(run_folder.FROZEN))
    plan = Plan.load(folder.path / run_folder.PLAN)
    progress, tensors, state = unpack(folder.path / run_folder.CHECKPOINT)
    setup = prepare(config, plan, watcher.note, load=lambda model: fill(model, tensors))
    freezer = None
    if config.schedule is not None:
        schedule = load(folder.path / run_folder.SCHEDULE)
        freezer = start_freezer(schedule, config, setup)
        resume_freezer(freezer, state, folder.path)
    else:
        _resume_optimizer(setup, state, folder.path)
    metrics.keep(progress.epoch)
    job = _Job(
        config=config,
        setup=setup,
        freezer=freezer,
        recorded=recorded,
        watcher=watcher,
        replaying=Replaying(config, setup.model, setup.task, watcher.note),
    )
    with listening() as stop:
        return _carry_on(
            _Run(job=job, folder=folder, metrics=metrics, progress=progress, stop=stop)
        )


def _resume_optimizer(setup: Setup, state: dict[str, Any], run: Path) -> None:
    try:
        setup.optimizer.load_state_dict(state)
    except ValueError as error:
        raise ConfigError(f"{run} can't be resumed, its plan changed: {error}") from error


@contextmanager
def _surroundings(config: FinetuneConfig) -> Iterator[None]:
    """The caller's random state and threads are as before afterwards."""
    with torch.random.fork_rng(devices=[]), threads(1 if config.model in BUILTIN else None):
        yield


def _first_files(folder: RunFolder, job: _Job, progress: Progress) -> None:
    """All that a resumption needs, before the first step is made."""
    setup, freezer = job.setup, job.freezer
    folder.write(run_folder.PLAN, setup.frozen.plan.to_yaml().encode())
    if freezer is not None:
        folder.write(run_folder.SCHEDULE, to_yaml(freezer.schedule).encode())
    # It may be resumed from another folder than the one it was started in.
    folder.write(run_folder.CONFIG, with_absolute_paths(job.config).to_yaml().encode())
    folder.write(run_folder.FROZEN, json_bytes(job.recorded))
    folder.write(run_folder.METRICS, b"")
    stateful = freezer or setup.optimizer
    folder.write(run_folder.CHECKPOINT, pack(progress, setup.model, stateful))
    folder.set_running(epoch=progress.epoch, epochs=job.config.epochs)


def _carry_on(run: _Run) -> Result:
    """Train the epochs that are left, then conclude; whatever happens, the status says so."""
    again, anew = run.folder.resume_command, run.folder.restart_command
    try:
        run.folder.set_running(epoch=run.progress.epoch, epochs=run.job.config.epochs)
        _train(run)
        return _conclude(run)
    except KeyboardInterrupt:
        run.set_status("interrupted", "stopped by a signal", resumable=True, next=again)
        raise Interrupted(
            run=str(run.folder.path),
            epoch=run.progress.epoch,
            epochs=run.job.config.epochs,
            go_on=again,
        ) from None
    except BaseException as error:
        # What the configuration brought about would come again; a full disk can be mended.
        fatal = isinstance(error, ConfigError | ScheduleError | FrozenChangedError)
        reason = str(error) or type(error).__name__
        # If this can't be written either, the error on its way is the one to show.
        with suppress(OutputError):
            run.set_status("failed", reason, resumable=not fatal, next=anew if fatal else again)
        raise
    finally:
        run.job.replaying.close()


def _train(run: _Run) -> None:
    """The epochs that are left; after each, its line and then its checkpoint are on disk."""
    config, setup, freezer = run.job.config, run.job.setup, run.job.freezer
    watcher = run.job.watcher

    def after_step(loss: float) -> None:
        if freezer is not None:
            freezer.step(loss)
        watcher.step(loss)
        run.stop.obey()

    steps = batch_count(len(setup.task.train), config.batch_size)
    watcher.begin(epochs=config.epochs, done=run.progress.epoch, steps=steps)
    for epoch in range(run.progress.epoch + 1, config.epochs + 1):
        began = time.perf_counter()
        run.job.replaying.look(_frozen_now(setup, freezer))
        loss = train_epoch(
            setup.model,
            setup.optimizer,
            setup.task.train,
            batch_size=config.batch_size,
            seed=config.seed,
            epoch=epoch,
            after_step=after_step,
            feed=run.job.replaying.feed,
        )
        now = accuracy(setup.model, setup.task.held_out, feed=run.job.replaying.feed)
        if freezer is not None:
            freezer.epoch(now)
            freezer.verify()  # a checkpoint must not take what has moved for what was frozen
        seconds = time.perf_counter() - began
        line = EpochMetrics(epoch=epoch, loss=loss, accuracy=now, seconds=seconds)
        run.metrics.append(line)
        progress = replace(
            run.progress, epoch=epoch, accuracy=now, seconds=run.progress.seconds + seconds
        )
        checkpoint = pack(progress, setup.model, freezer or setup.optimizer)
        run.folder.write(run_folder.CHECKPOINT, checkpoint)
        run.progress = progress
        watcher.epoch(line)


def _frozen_now(setup: Setup, freezer: Freezer | None) -> tuple[str, ...]:
    """Names of what is frozen by the plan and by the schedule."""
    return (*setup.frozen.names, *(freezer.frozen if freezer is not None else ()))


def _conclude(run: _Run) -> Result:
    """Prove, save the weights, measure, write the result."""
    setup, folder = run.job.setup, run.folder
    replayed = run.job.replaying.report()
    proof = prove(setup.frozen, setup.model, run.job.recorded)
    trained, timeline, saved = _trained(setup), None, None
    if run.job.freezer is not None:
        proof = prove_schedule(run.job.freezer, setup.model, proof)
        timeline = timeline_of(run.job.freezer, setup.model, epochs=run.job.config.epochs)
        trained = trained_by(run.job.freezer, timeline, setup.model, setup.frozen)
    replace_atomically(folder.path / run_folder.MODEL, lambda path: _save(setup.model, path))
    if timeline is None:
        saved = _savings(run)
    else:
        write_timeline(folder, timeline, run.job.watcher.note)
    result = Result(
        run=folder.path,
        model=run.job.config.model,
        data=run.job.config.data,
        epochs=run.progress.epoch,
        train_seconds=run.progress.seconds,
        trained=trained,
        accuracy=Accuracy(
            before=run.progress.accuracy_before,
            after=run.progress.accuracy,
            held_out=len(setup.task.held_out),
        ),
        proof=proof,
        saved=saved,
        next=folder.inspect_command if proof.ok else folder.restart_command,
        replay=replayed,
        schedule=None if timeline is None else schedule_report(timeline),
    )
    folder.write(run_folder.RESULT, json_bytes(result.to_json()))
    state: State = "finished" if proof.ok else "failed"
    run.set_status(state, proof.summary, resumable=False, next=result.next)
    # Not before the status: a kill in between leaves a run that can be resumed or is finished.
    with suppress(OSError):
        (folder.path / run_folder.CHECKPOINT).unlink()
    return result


def _savings(run: _Run) -> Savings | None:
    """Measure full training beside the frozen one; the weights on disk are not concerned."""
    setup = run.job.setup
    run.job.watcher.measuring()
    train = setup.task.train
    size = run.job.config.batch_size
    batch = Split(inputs=train.inputs[:size], targets=train.targets[:size])
    try:
        frozen = copy.deepcopy(setup.model)
        # Not "everything trainable": full training is the model as it came.
        setup.frozen.undo()
        return measure_savings(frozen, setup.model, setup.make_optimizer, batch, obey=run.stop.obey)
    # Whatever a foreign model does when it is copied or trained whole, the run itself is done.
    except Exception as error:
        run.job.watcher.note(f"what freezing saved could not be measured: {error}")
        return None


def _trained(setup: Setup) -> Trained:
    parameters = list(setup.model.parameters())
    return Trained(
        rules=str(setup.frozen.plan),
        parameters=sum(p.numel() for p in parameters if p.requires_grad),
        of=sum(p.numel() for p in parameters),
    )


def _save(model: nn.Module, path: Path) -> None:
    """Write the weights; tied tensors once, as safetensors has it."""
    try:
        save_model(model, str(path))
    except SafetensorError as error:
        raise OSError(str(error)) from error
