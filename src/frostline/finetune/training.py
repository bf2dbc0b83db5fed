"""The epochs of a run; after each, its line and its checkpoint are on disk."""

from __future__ import annotations

import time

from frostline.finetune import run_folder
from frostline.finetune.checkpointing import Progress
from frostline.finetune.loop import train_epoch
from frostline.finetune.metrics import EpochMetrics
from frostline.finetune.parts import Job, Run
from frostline.finetune.scheduling import steps_per_epoch
from frostline.finetune.scoring import Scores, evaluate, followed, is_better
from frostline.units import format_number_of


def score(job: Job) -> Scores:
    """How good the model is now on the held-out samples."""
    setup = job.setup
    setup.engine.align(job.model_to_call())
    return evaluate(
        setup.model,
        job.replaying.feed(setup.held_out),
        engine=setup.engine,
        kind=setup.sources.kind,
        labels=setup.sources.labels,
    )


def train(run: Run) -> None:
    """Train the epochs that are left, or until no epoch has been better for long enough.

    Raises:
        ConfigError: the loss is no longer finite.
        FrozenChangedError: what a schedule froze has moved.
        OutputError: the folder can't be written.
        KeyboardInterrupt: someone asked to stop.
    """
    job, config = run.job, run.job.config
    steps = steps_per_epoch(job.setup, config)
    job.watcher.begin(epochs=config.epochs, done=run.progress.epoch, steps=steps)
    for epoch in range(run.progress.epoch + 1, config.epochs + 1):
        if _is_stuck(run):
            return
        began = time.perf_counter()
        job.replaying.look(job.frozen_now)
        loss = _train_epoch(run, epoch)
        scores = score(job)
        if job.freezer is not None:
            job.freezer.epoch(_metric(job, scores))
            job.freezer.verify()  # a checkpoint must not take what has moved for what was frozen
        line = EpochMetrics(
            epoch=epoch,
            loss=loss,
            accuracy=scores.accuracy,
            held_out_loss=scores.loss,
            f1=scores.f1,
            seconds=time.perf_counter() - began,
        )
        run.metrics.append(line)
        _keep(run, line, scores)
        job.watcher.epoch(line)


def _train_epoch(run: Run, epoch: int) -> float:
    """Train once on every sample; gives the mean loss over all processes."""
    job = run.job

    def after_step(loss: float) -> None:
        if job.scheduler is not None:
            job.scheduler.step()
        if job.freezer is not None:
            job.freezer.step(loss)
        job.watcher.step(loss)
        run.obey()

    job.setup.begin_epoch(job.config.seed, epoch)
    total, count = train_epoch(
        job.model_to_call,
        job.stepping,
        job.replaying.feed(job.setup.train),
        engine=job.engine,
        seed=job.config.seed,
        epoch=epoch,
        accumulate=job.config.accumulate,
        after_step=after_step,
    )
    total, samples = job.engine.total((total, count))
    return total / samples


def _keep(run: Run, line: EpochMetrics, scores: Scores) -> None:
    """Put the epoch on disk, and the best one so far if that is the epoch before."""
    before = run.progress
    none_yet = before.best_epoch == 0
    is_best = is_better(scores, None if none_yet else before.best, run.job.setup.sources.kind)
    if not is_best and before.best_epoch == before.epoch:
        run.folder.keep_best()
    progress = Progress(
        epoch=line.epoch,
        before=before.before,
        best=scores if is_best else before.best,
        best_epoch=line.epoch if is_best else before.best_epoch,
        seconds=before.seconds + line.seconds,
    )
    run.folder.write(run_folder.CHECKPOINT, run.job.checkpoint(progress))
    run.progress = progress


def _is_stuck(run: Run) -> bool:
    patience, progress = run.job.config.early_stop, run.progress
    if patience is None or progress.epoch - progress.best_epoch < patience:
        return False
    run.job.watcher.note(
        f"stopped after epoch {progress.epoch}: the {followed(run.job.setup.sources.kind)} has not"
        f" improved for {format_number_of(patience, 'epoch')}"
    )
    return True


def _metric(job: Job, scores: Scores) -> float:
    """What a schedule that waits for a metric is given."""
    measure = followed(job.setup.sources.kind)
    return float(getattr(scores, measure))
