"""What a run found out: the object behind ``result.json``, ``--json`` and the table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from frostline.proof import Change


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure on samples that no step trained on.

    Attributes:
        before: before the first step, with the new head.
        after: after the best epoch, which is what was kept.
        held_out: number of those samples.
    """

    before: float
    after: float
    held_out: int


@dataclass(frozen=True, kw_only=True)
class ProofReport:
    """Whether all that was frozen is bitwise what it was before the first step.

    Attributes:
        parameters: frozen parameters that were compared.
        buffers: buffers of frozen modules that were compared.
        seconds: how long the comparison took.
        changes: what moved; empty if the proof holds.
    """

    parameters: int
    buffers: int
    seconds: float
    changes: tuple[Change, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing moved."""
        return not self.changes

    @property
    def tensors(self) -> int:
        """Number of tensors that were compared."""
        return self.parameters + self.buffers

    @property
    def summary(self) -> str:
        """The outcome in one line, with the first tensor that moved."""
        if self.ok:
            return f"{self.tensors} frozen tensors are bitwise unchanged"
        others = f" (and {len(self.changes) - 1} more)" if len(self.changes) > 1 else ""
        return f"the proof failed{others}: {self.changes[0]}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a training step takes.

    Attributes:
        gradient_bytes: gradients after backward.
        optimizer_state_bytes: what the optimizer keeps between steps.
        activation_bytes: what the forward pass keeps for backward.
        step_seconds: median time of a step.
    """

    gradient_bytes: int
    optimizer_state_bytes: int
    activation_bytes: int
    step_seconds: float


@dataclass(frozen=True, kw_only=True)
class Savings:
    """The same step with and without freezing, measured in turns on one machine.

    Attributes:
        frozen: as the run trained.
        full: the same model with nothing frozen.
    """

    frozen: Cost
    full: Cost


@dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """What was replayed instead of computed, in the process that ended the run.

    Attributes:
        place: where it is kept: ``memory`` or a folder; None if nothing was to be replayed.
        recorded: batches that were computed and recorded.
        replayed: batches whose frozen part was not computed, held-out scans included.
        plain: batches that were computed and not recorded.
        skipped_share: share of the forward time that a replayed batch leaves out, from 0 to 1.
        kept_bytes: bytes of the store; of a folder, of all runs together.
        saved_seconds: estimate of the time that it saved, after what trials, recording and checks
            took; below 0 if that was more.
        why_not: why nothing was replayed; None if something was.
    """

    place: str | None
    recorded: int
    replayed: int
    plain: int
    skipped_share: float
    kept_bytes: int
    saved_seconds: float
    why_not: str | None


@dataclass(frozen=True, kw_only=True)
class ScheduleReport:
    """What a schedule froze when; ``timeline.json`` has all of it.

    Attributes:
        name: the schedule's name.
        transitions: how often something froze or thawed after the start.
        places: blocks, ``stem`` and ``head``, from the input up.
        frozen: for each place, how much of it was frozen in each epoch, from 0 to 1.
    """

    name: str
    transitions: int
    places: tuple[str, ...]
    frozen: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How much was trained.

    Attributes:
        rules: the plan, or the schedule, in one line.
        parameters: scalars that were trained, at least for a step.
        of: scalars that the model has.
    """

    rules: str
    parameters: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run that came to its end; the proof may have failed.

    Attributes:
        run: the run's folder.
        model: what ``--model`` said.
        data: what ``--data`` said.
        kind: what the model was trained to do.
        followed: the measure by which the best epoch was chosen: accuracy, f1 or loss.
        epochs: epochs that were trained.
        best_epoch: the one whose weights were kept.
        train_seconds: time of those, over all processes that took part.
        trained: how much was trained.
        accuracy: share of the targets that come first: of samples, tokens, or next tokens.
        loss: cross-entropy of a target, in nats; its exponential is the perplexity.
        f1: of the tokens that are part of something; None but for token classification.
        proof: whether the frozen part held.
        saved: None if full training could not be measured; under a schedule, where no one step
            stands for the run; and among several processes.
        next: the command to go on with.
        replay: what was replayed; None where nobody asked.
        schedule: what the schedule froze when; None without one.
    """

    run: Path
    model: str
    data: str
    kind: str
    followed: str
    epochs: int
    best_epoch: int
    train_seconds: float
    trained: Trained
    accuracy: Measure
    loss: Measure
    f1: Measure | None
    proof: ProofReport
    saved: Savings | None
    next: str
    replay: ReplayReport | None = None
    schedule: ScheduleReport | None = None

    def to_json(self) -> dict[str, object]:
        """Plain values for JSON; ``proof`` has ``ok`` and ``tensors`` besides its fields."""
        changes = [
            # JSON has no NaN: an amount that isn't known is null.
            {**asdict(change), "max_abs": _finite(change.max_abs)}
            for change in self.proof.changes
        ]
        proof = {
            "ok": self.proof.ok,
            "tensors": self.proof.tensors,
            **asdict(self.proof),
            "changes": changes,
        }
        return {**asdict(self), **_schedule(self.schedule), "run": str(self.run), "proof": proof}


def _schedule(report: ScheduleReport | None) -> dict[str, object]:
    if report is None:
        return {"schedule": None}
    # Lists, as JSON gives them back.
    lists = {"places": list(report.places), "frozen": [list(row) for row in report.frozen]}
    return {"schedule": {**asdict(report), **lists}}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
