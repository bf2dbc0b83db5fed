"""The fine-tuning job: train, keep what was reached, prove, measure, report. Prints nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from frostline.checkpoint import fingerprints
from frostline.errors import ConfigError, FrozenChangedError, OutputError, ScheduleError
from frostline.finetune import run_folder
from frostline.finetune.checkpointing import Progress, fill, unpack
from frostline.finetune.concluding import conclude
from frostline.finetune.config import FinetuneConfig, load_config
from frostline.finetune.foresight import memory_errors_explained
from frostline.finetune.interrupts import Interrupted, listening
from frostline.finetune.metrics import open_metrics
from frostline.finetune.networks import BUILTIN
from frostline.finetune.parts import Job, Run, go_on, put_together
from frostline.finetune.prepare import open_job, plan_of, prepare, with_absolute_paths
from frostline.finetune.proving import Record, record
from frostline.finetune.result import Result
from frostline.finetune.run_folder import RunFolder, create_run, json_bytes
from frostline.finetune.scheduling import schedule_of
from frostline.finetune.sources.base import Sources
from frostline.finetune.threads import threads
from frostline.finetune.training import score, train
from frostline.finetune.watcher import Silent, Watcher
from frostline.freezing import Plan
from frostline.replay.loading_views import generators_kept
from frostline.schedules import load, to_yaml


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
    ['base.json', 'config.yaml', 'frozen.json', 'metrics.jsonl', 'model.safetensors', 'plan.yaml',
     'result.json', 'status.json']
    >>> result.proof.ok
    True
    """
    with surroundings(config):
        job = begin(config, watcher or Silent())
        job.replaying.look(job.frozen_now)
        with memory_errors_explained(job.setup, config):
            before = score(job)
        progress = Progress(epoch=0, before=before, best=before, best_epoch=0, seconds=0.0)
        with listening() as stop:
            path = job.engine.by_main(lambda: _new_folder(job, progress))
            folder = RunFolder(path, writes=job.engine.is_main)
            with open_metrics(path / run_folder.METRICS, writes=folder.writes) as metrics:
                return _carry_on(
                    Run(job=job, folder=folder, metrics=metrics, progress=progress, stop=stop)
                )


def begin(config: FinetuneConfig, watcher: Watcher) -> Job:
    """Open, freeze and put together what a configuration asks for; writes nothing.

    Raises:
        FrostlineError: it does not fit.
    """
    schedule = schedule_of(config)
    if config.plan:
        Plan.load(config.plan)  # what is wrong with it is said before anything takes long
    sources, engine = open_job(config, watcher.note)
    plan = plan_of(config, sources.head)
    base = fingerprints(sources.model)
    setup = prepare(config, plan, sources, engine)
    _say_what_trains(config, sources, setup.frozen.names, watcher)
    return put_together(
        config,
        setup,
        schedule,
        recorded=record(setup.frozen),  # before the schedule freezes what will thaw again
        base=base,
        watcher=watcher,
    )


def resume(path: Path, watcher: Watcher | None = None) -> Result:
    """Go on with a run that was cut short, as if it had not been: bit for bit the same weights.

    Args:
        path: the run's folder.
        watcher: told how it goes.

    Raises:
        ConfigError: it is finished, or its folder is damaged, or another process trains in it, or
            its model or data are no longer what they were.
        FrostlineError: as from :func:`start`.
        Interrupted: again a signal asked to stop.
    """
    RunFolder(path).refuse_to_resume()  # before a file is made in what may be no run at all
    config = load_config(path / run_folder.CONFIG)
    with surroundings(config):
        return _resume(path, config, watcher or Silent())


def _resume(path: Path, config: FinetuneConfig, watcher: Watcher) -> Result:
    sources, engine = open_job(config, watcher.note)
    folder = RunFolder(path, writes=engine.is_main)
    with open_metrics(path / run_folder.METRICS, writes=folder.writes) as metrics:
        folder.refuse_to_resume()  # another process may have finished it until it let go
        told = folder.read_json(run_folder.BASE)
        if told.get("data") != sources.identity:
            raise ConfigError(
                f"{path} can't be resumed: {config.data} is not the data that it began with; give"
                f" it back as it was, or train anew: {folder.restart_command}"
            )
        base = cast("dict[str, str]", told["tensors"])
        recorded = cast(Record, folder.read_json(run_folder.FROZEN))
        saved = unpack(path / run_folder.CHECKPOINT)
        setup = prepare(
            config,
            Plan.load(path / run_folder.PLAN),
            sources,
            engine,
            load=lambda model: fill(model, saved.tensors, base),
        )
        schedule = None if config.schedule is None else load(path / run_folder.SCHEDULE)
        job = put_together(config, setup, schedule, recorded=recorded, base=base, watcher=watcher)
        go_on(job, saved, folder)
        metrics.keep(saved.progress.epoch)
        with listening() as stop:
            return _carry_on(
                Run(job=job, folder=folder, metrics=metrics, progress=saved.progress, stop=stop)
            )


@contextmanager
def surroundings(config: FinetuneConfig) -> Iterator[None]:
    """The caller's random state and threads are as before afterwards."""
    with generators_kept(), threads(1 if config.model in BUILTIN else None):
        yield


def _say_what_trains(
    config: FinetuneConfig, sources: Sources, frozen: tuple[str, ...], watcher: Watcher
) -> None:
    asked = config.train or config.freeze or config.plan or config.schedule
    if not asked and sources.base is not None:
        watcher.note(
            f"nothing was said about what to train: it is the head ({', '.join(sources.head)})"
        )
    untrained = sorted({*sources.new} & {*frozen})
    if untrained:
        watcher.note(
            f"{untrained[0]} is new and stays frozen, so it keeps its random values: train it too,"
            " unless that is what you want"
        )


def _new_folder(job: Job, progress: Progress) -> Path:
    """Make the run's folder with all that a resumption needs, before the first step is made."""

    def fill_folder(folder: RunFolder) -> None:
        setup = job.setup
        folder.write(run_folder.PLAN, setup.frozen.plan.to_yaml().encode())
        if job.freezer is not None:
            folder.write(run_folder.SCHEDULE, to_yaml(job.freezer.schedule).encode())
        # It may be resumed from another folder than the one it was started in.
        folder.write(run_folder.CONFIG, with_absolute_paths(job.config).to_yaml().encode())
        folder.write(run_folder.FROZEN, json_bytes(job.recorded))
        base = {"data": setup.sources.identity, "tensors": job.base}
        folder.write(run_folder.BASE, json_bytes(base))
        folder.write(run_folder.METRICS, b"")
        folder.write(run_folder.CHECKPOINT, job.checkpoint(progress))
        folder.set_running(epoch=progress.epoch, epochs=job.config.epochs)

    name = job.config.model.rstrip("/").rpartition("/")[2]
    return create_run(job.config.out, name, fill_folder).path


def _carry_on(run: Run) -> Result:
    """Train the epochs that are left, then conclude; whatever happens, the status says so."""
    again, anew = run.folder.resume_command, run.folder.restart_command
    try:
        run.folder.set_running(epoch=run.progress.epoch, epochs=run.job.config.epochs)
        with memory_errors_explained(run.job.setup, run.job.config):
            train(run)
        return conclude(run)
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
