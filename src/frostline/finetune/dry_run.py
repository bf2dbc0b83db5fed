"""What a job would do, without doing it: nothing is trained, and nothing is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from frostline.errors import MeasureError
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.foresight import Need, memory_errors_explained, memory_needed, step_seconds
from frostline.finetune.job import begin, surroundings
from frostline.finetune.scheduling import steps_per_epoch
from frostline.finetune.watcher import Silent, Watcher
from frostline.replay.frost_line import FrostLine


@dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
    """A job before it runs.

    Attributes:
        kind: what the model would be trained to do.
        rules: the plan in one line; under a schedule, what it leaves alone.
        schedule: the schedule's name; None without one.
        trains: names of the parameters that train at the start.
        parameters: scalars that those are.
        of: scalars that the model has.
        train_samples: samples to train on.
        held_out_samples: samples that are held out.
        steps_per_epoch: optimizer steps.
        line: the frost line; None if replay is off, or the model could not be tried out.
        replay_why_not: why nothing would be replayed; None if something would be.
        replay_bytes: what would be kept for all samples.
        need: memory of a step; None for a model whose step depends on content.
        step_seconds: measured time of a step, without replay.
        epoch_seconds: time of the training steps of an epoch, estimated from it.
        replayed_epoch_seconds: the same from the second epoch on, replayed; None if nothing is.
    """

    kind: str
    rules: str
    schedule: str | None
    trains: tuple[str, ...]
    parameters: int
    of: int
    train_samples: int
    held_out_samples: int
    steps_per_epoch: int
    line: FrostLine | None
    replay_why_not: str | None
    replay_bytes: int
    need: Need | None
    step_seconds: float
    epoch_seconds: float
    replayed_epoch_seconds: float | None

    def to_json(self) -> dict[str, object]:
        """Plain values for JSON."""
        line, need = self.line, self.need
        fields = {name: value for name, value in vars(self).items() if name not in ("line", "need")}
        return {
            **fields,
            "trains": list(self.trains),
            "frost_line": None
            if line is None
            else {
                "skipped": list(line.skipped),
                "kept": dict(line.kept),
                "bytes_per_sample": line.bytes_per_sample,
                "skipped_share": line.skipped_share,
            },
            "memory": need and {**asdict(need), "total_bytes": need.total_bytes},
        }


def preview(config: FinetuneConfig, watcher: Watcher | None = None) -> Preview:
    """Put a job together, look at its frost line, foretell its memory, and time a few steps.

    Args:
        config: the job.
        watcher: told what takes long.

    Raises:
        FrostlineError: the configuration does not fit, or a step does not fit into memory.

    >>> seen = preview(FinetuneConfig(train="head", replay="memory"))
    >>> seen.trains, seen.parameters, seen.steps_per_epoch
    (('head.weight', 'head.bias'), 645, 21)
    """
    with surroundings(config):
        job = begin(config, watcher or Silent())
        setup = job.setup
        with memory_errors_explained(setup, config):
            line, why_not = job.replaying.look(job.frozen_now)
            seconds = step_seconds(setup, config)
        try:
            need = memory_needed(setup, config)
        except MeasureError:
            need = None
        job.replaying.close()
    sources = setup.sources
    trained = {name: p for name, p in setup.model.named_parameters() if p.requires_grad}
    steps = len(setup.batches)
    saved = (line.forward_seconds - (line.replayed_seconds or 0.0)) if line else 0.0
    samples = (len(sources.train), len(sources.held_out))  # type: ignore[arg-type]
    return Preview(
        kind=sources.kind,
        rules=str(setup.frozen.plan),
        schedule=None if job.freezer is None else job.freezer.schedule.name,
        trains=tuple(trained),
        parameters=sum(p.numel() for p in trained.values()),
        of=sum(p.numel() for p in setup.model.parameters()),
        train_samples=samples[0],
        held_out_samples=samples[1],
        steps_per_epoch=steps_per_epoch(setup, config),
        line=line,
        replay_why_not=why_not,
        replay_bytes=line.bytes_per_sample * sum(samples) if line and why_not is None else 0,
        need=need,
        step_seconds=seconds,
        epoch_seconds=seconds * steps,
        replayed_epoch_seconds=None if why_not else max(0.0, seconds - saved) * steps,
    )
