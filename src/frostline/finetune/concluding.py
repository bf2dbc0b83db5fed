"""The end of a run: proof, weights, savings, result."""

from __future__ import annotations

import copy
from contextlib import suppress

from frostline.finetune import run_folder
from frostline.finetune.checkpointing import Progress, fill_best
from frostline.finetune.parts import Job, Run
from frostline.finetune.prepare import first_batch
from frostline.finetune.proving import among_ranks, prove, prove_schedule
from frostline.finetune.result import Measure, Result, Savings, Trained
from frostline.finetune.run_folder import State, json_bytes
from frostline.finetune.savings import measure_savings
from frostline.finetune.schedule_report import schedule_report, trained_by, write_timeline
from frostline.finetune.scoring import followed
from frostline.finetune.shipping import ship
from frostline.finetune.timeline import timeline_of


def conclude(run: Run) -> Result:
    """Prove, keep the best epoch's weights, measure, write the result."""
    job, setup, folder = run.job, run.job.setup, run.folder
    replayed = job.replaying.report()
    proof = prove(setup.frozen, setup.model, job.recorded)
    trained, timeline, saved = _trained(job), None, None
    if job.freezer is not None:
        proof = prove_schedule(job.freezer, setup.model, proof)
        timeline = timeline_of(job.freezer, setup.model, epochs=run.progress.epoch)
        trained = trained_by(job.freezer, timeline, setup.model, setup.frozen)
    proof = among_ranks(proof, job.engine)
    if run.progress.best_epoch != run.progress.epoch:
        fill_best(setup.model, folder.path / run_folder.BEST)
    next_command = folder.restart_command
    if folder.writes:
        next_command = ship(run)
        if timeline is not None:
            write_timeline(folder, timeline, job.watcher.note)
        elif job.engine.ranks == 1:  # else a step would have to be made by all of them
            saved = _savings(run)
    result = Result(
        run=folder.path,
        model=job.config.model,
        data=job.config.data,
        kind=setup.sources.kind,
        followed=followed(setup.sources.kind),
        epochs=run.progress.epoch,
        best_epoch=run.progress.best_epoch,
        train_seconds=run.progress.seconds,
        trained=trained,
        accuracy=_measure(run.progress, "accuracy"),
        loss=_measure(run.progress, "loss"),
        f1=None if run.progress.best.f1 is None else _measure(run.progress, "f1"),
        proof=proof,
        saved=saved,
        next=next_command if proof.ok else folder.restart_command,
        replay=replayed,
        schedule=None if timeline is None else schedule_report(timeline),
    )
    folder.write(run_folder.RESULT, json_bytes(result.to_json()))
    state: State = "finished" if proof.ok else "failed"
    run.set_status(state, proof.summary, resumable=False, next=result.next)
    _tidy(run)
    return result


def _measure(progress: Progress, name: str) -> Measure:
    before, after = (float(getattr(s, name)) for s in (progress.before, progress.best))
    return Measure(before=before, after=after, held_out=progress.best.samples)


def _trained(job: Job) -> Trained:
    parameters = list(job.setup.model.parameters())
    return Trained(
        rules=str(job.setup.frozen.plan),
        parameters=sum(p.numel() for p in parameters if p.requires_grad),
        of=sum(p.numel() for p in parameters),
    )


def _savings(run: Run) -> Savings | None:
    """Measure full training beside the frozen one; the weights on disk are not concerned."""
    job, setup = run.job, run.job.setup
    job.watcher.measuring()
    batch = first_batch(setup, job.config.batch_size)
    try:
        frozen = copy.deepcopy(setup.model)
        # Not "everything trainable": full training is the model as it came.
        setup.frozen.undo()
        return measure_savings(
            frozen,
            setup.model,
            setup.make_optimizer,
            batch,
            engine=setup.engine,
            obey=run.stop.obey,
        )
    # Whatever a foreign model does when it is copied or trained whole, the run itself is done.
    except Exception as error:
        job.watcher.note(f"what freezing saved could not be measured: {error}")
        return None


def _tidy(run: Run) -> None:
    """Remove the checkpoints.

    Not before the status: a kill in between leaves a run that can be resumed or is finished.
    """
    if run.folder.writes:
        for name in (run_folder.CHECKPOINT, run_folder.BEST):
            with suppress(OSError):
                (run.folder.path / name).unlink()
