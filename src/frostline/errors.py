"""Every error that Frostline raises on purpose.

Each is a :class:`FrostlineError` and also the built-in that people would catch for the same
mistake, so ``except ValueError`` around a selection works without importing Frostline.
A message says what failed, what was got and expected, and how to mend it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline.guard.violation import Violation, Writer
    from frostline.proof.changes import Change


class FrostlineError(Exception):
    """Base of all errors raised by Frostline.

    >>> issubclass(SelectorError, FrostlineError) and issubclass(SelectorError, ValueError)
    True
    """


class ModelTypeError(FrostlineError, TypeError):
    """Something that is no ``torch.nn.Module`` was given where a model is wanted."""


class SelectorError(FrostlineError, ValueError):
    """A selector is malformed, ambiguous, or matches nothing in the model."""


class PlanError(FrostlineError, ValueError):
    """A plan can't be read, written, or applied: unknown keys, rules at odds, nothing to train."""


class TransitionError(FrostlineError, RuntimeError):
    """A freeze, thaw or proof was asked for at a moment when it cannot be done.

    In the middle of a step, with gradients not yet used; or of a freeze that was undone.
    """


class OptimizerError(FrostlineError, ValueError):
    """An optimizer can't be built as asked: an unknown option, nothing trainable."""


class ScheduleError(FrostlineError, ValueError):
    """A schedule can't be read, or does not suit the model, the run or a saved state."""


class CheckpointError(FrostlineError, ValueError):
    """A checkpoint or a delta can't be read, is damaged, or belongs to another model."""


class ModelSourceError(FrostlineError, ValueError):
    """A model could not be loaded from the name, path or factory that was given."""


class ConfigError(FrostlineError, ValueError):
    """A configuration value is unknown, of the wrong type, or out of range."""


class OutputError(FrostlineError, OSError):
    """A result could not be written: no permission, a full disk, a folder in the way."""


class MissingExtraError(FrostlineError, ImportError):
    """A package that an optional part needs is not installed; the message has the line to run."""


class MeasureError(FrostlineError, RuntimeError):
    """Memory or time could not be predicted or measured for this model."""


class ReplayError(FrostlineError, RuntimeError):
    """A model or a loader can't be replayed as asked, or a replayed value was not the true one."""


class FrozenChangedError(FrostlineError, RuntimeError):
    """Something frozen did not stay bitwise the same.

    Attributes:
        changes: one :class:`frostline.proof.changes.Change` per tensor that moved, in the
            model's order: its name, how many elements moved, by how much at most, and why.
    """

    def __init__(self, message: str, changes: Sequence[Change]) -> None:
        super().__init__(message)
        self.changes = tuple(changes)

    def __reduce__(self) -> tuple[type[FrozenChangedError], tuple[str, tuple[Change, ...]]]:
        # The default would call __init__ with the message alone and fail to unpickle,
        # which hides the error of a worker process.
        return type(self), (str(self), self.changes)


class GuardError(FrozenChangedError):
    """A guard found that something frozen moved or is about to, or something trainable is missed.

    Attributes:
        violations: one :class:`frostline.guard.violation.Violation` each, with the tensor's name.
        changes: those of them that are content which moved; empty if no content did (yet).
    """

    def __init__(self, message: str, violations: Sequence[Violation]) -> None:
        super().__init__(message, [v.change for v in violations if v.change is not None])
        self.violations = tuple(violations)

    @property
    def step(self) -> int:
        """The step in which it was found, counted from 1."""
        return self.violations[0].step

    @property
    def writer(self) -> Writer | None:
        """Who wrote the first of them; None where nothing was written."""
        return self.violations[0].writer

    def __reduce__(self) -> tuple[type[GuardError], tuple[str, tuple[Violation, ...]]]:  # type: ignore[override]
        return type(self), (str(self), self.violations)


class GuardWarning(UserWarning):
    """What a guard found, where it was asked to warn (``on="warn"``), or could not mend."""
