"""What a guard found: the tensor, the step, the amount, and who wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from frostline.proof import Change

WriterKind = Literal["optimizer", "forward", "load_state_dict", "outside", "unknown"]
ViolationKind = Literal["content", "flag", "gradient", "membership", "unreached", "thaw"]


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Who wrote a frozen tensor, or is about to.

    Attributes:
        kind: ``optimizer``, ``forward`` (of a module), ``load_state_dict``, ``outside`` (the loop's
            own code, a hook, backward), or ``unknown`` where the guard was not looking.
        name: the optimizer's class or the module's canonical name; empty where there is none.
        text: the same in words, with what makes it write: group, weight decay, momentum, mode.
    """

    kind: WriterKind
    name: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One thing that a guard found wrong.

    Attributes:
        kind: ``content`` (a frozen tensor moved), ``flag`` (a frozen parameter requires grad
            again), ``gradient`` (a frozen parameter has one), ``membership`` (a parameter is in the
            wrong number of optimizer groups), ``unreached`` (a trainable parameter that no
            gradient reaches), ``thaw`` (one that was thawed after the forward that this step is
            about, so that no gradient came).
        name: canonical name of the tensor.
        step: the step in which it was found; steps count from 1, and 0 is before the first.
        since: the last step after which it was known to be well; None unless the change was
            found too late to be placed, and happened after step ``since``, up to step ``step``.
        change: how many elements moved and by how much, for ``content``; else None.
        writer: who wrote it; None where nothing was written.
        detail: what is wrong and how to mend it.
    """

    kind: ViolationKind
    name: str
    step: int
    since: int | None = None
    change: Change | None = None
    writer: Writer | None = None
    detail: str = ""

    def __str__(self) -> str:
        if self.change is None:
            return f"{self.name}: {self.detail}"
        when = f" after step {self.since}, by step {self.step}" if self.since is not None else ""
        extent = f"{self.change.extent}{when}"
        return f"{self.change.kind} {self.name}: {extent}; written by {self.writer}"


@dataclass(frozen=True, kw_only=True)
class GuardReport:
    """What a guard did.

    Attributes:
        steps: training steps that it saw; with several optimizers, those of the busiest.
        parameters: frozen parameters under guard at the end.
        buffers: buffers of frozen modules under guard at the end.
        checks: comparisons of one tensor's content.
        bytes_read: bytes read for them.
        seconds: time spent in the guard, start and end included.
        restored: frozen values that were put back.
        violations: what was found, each tensor once for each kind.
    """

    steps: int
    parameters: int
    buffers: int
    checks: int
    bytes_read: int
    seconds: float
    restored: int
    violations: tuple[Violation, ...]


def describe(violations: Sequence[Violation], guarded: int) -> str:
    """The message of an error or warning: the step, and a line each for the first eight."""
    step = violations[-1].step
    when = f"step {step}" if step else "before the first step"
    moved = sum(violation.kind == "content" for violation in violations)
    if moved:
        head = f"{when}: {moved} of {guarded} frozen tensors changed"
        head += f", and {len(violations) - moved} more faults" if moved < len(violations) else ""
    else:
        head = f"{when}: {len(violations)} fault{'s' if len(violations) > 1 else ''}"
    lines = [f"{head}:", *(f"  {violation}" for violation in violations[:8])]
    if len(violations) > 8:
        lines.append(f"  and {len(violations) - 8} more")
    return "\n".join(lines)
