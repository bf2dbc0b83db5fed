"""The guard itself: what it does at each moment of the loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from frostline.errors import GuardError, GuardWarning, TransitionError
from frostline.guard.coverage import Coverage
from frostline.guard.events import Hooks
from frostline.guard.keeper import Keeper
from frostline.guard.lateness import Lateness
from frostline.guard.pace import Pace
from frostline.guard.timeline import Scope, Timeline
from frostline.guard.violation import GuardReport, Violation, ViolationKind, describe
from frostline.guard.watched import Watched

Reaction = Literal["raise", "warn", "restore"]
"""What to do about a violation."""

# Flags, gradients and groups are looked at in every step; this is for content, on top of that.
_SHARE_OF_TIME = 0.003
# Who steps where no optimizer does, beside the ids of those that do.
_BY_HAND = -1


class Guard:
    """Watches over a training loop; made by :func:`frostline.guard`, which explains it.

    A context manager; where a ``with`` does not fit (callbacks), call :meth:`start` and
    :meth:`stop`.

    >>> import frostline as fl, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> frozen = fl.freeze(model, "0")
    >>> guard = fl.guard(model)
    >>> guard.start()
    >>> model(torch.randn(4, 8)).sum().backward()
    >>> guard.step()
    >>> guard.stop()
    >>> guard.report.steps, guard.report.parameters
    (1, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        *,
        scheduler: Any,
        on: Reaction,
        every: int | None,
        patience: int,
    ) -> None:
        self._model = model
        self._optimizers = tuple(optimizers)
        self._scheduler = scheduler
        self._on = on
        self._every = every
        self._patience = patience
        self._hooks: Hooks | None = None
        self._report: GuardReport | None = None

    # --- its life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Record what is frozen, and begin to watch; once, and again after :meth:`stop`.

        Raises:
            TransitionError: (a RuntimeError) it is watching already.
        """
        if self._hooks is not None:
            raise TransitionError("this guard is watching already: stop() it first")
        began = perf_counter()
        self._report = None
        self._seconds = 0.0
        self._steps: dict[int, int] = {}
        self._done = 0
        self._found: dict[tuple[ViolationKind, str], Violation] = {}
        self._timeline = Timeline()
        self._pace = Pace(share=_SHARE_OF_TIME)
        self._coverage = Coverage(self._optimizers, self._scheduler)
        self._lateness = Lateness()
        self._keeper = Keeper(
            self._model,
            self._optimizers,
            self._timeline,
            self._pace,
            restore=self._on == "restore",
            always_armed=self._every == 1,
        )
        self._given = {id(inner) for o in self._optimizers for inner in _unwrapped(o)}
        self._hooks = Hooks(self)
        self._take_stock(1)
        self._step_ended_at = perf_counter()
        self._seconds_then = self._seconds = self._step_ended_at - began

    def stop(self, *, check: bool = True) -> None:
        """Compare everything a last time, and stop watching; a second call does nothing.

        Args:
            check: False leaves out the last comparison, as after an error of the loop.

        Raises:
            GuardError: (a FrozenChangedError) in mode ``raise``: something does not hold.
        """
        if self._hooks is None:
            return
        try:
            if check:
                with self._working():
                    self._last_look()
        finally:
            self._hooks.remove()
            self._report = self.report
            self._hooks = None

    def __enter__(self) -> Guard:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop(check=error is None)

    @property
    def report(self) -> GuardReport:
        """What the guard did so far, or in the run that it watched last."""
        if self._report is not None:
            return self._report
        if self._hooks is None:
            raise TransitionError("this guard has watched nothing yet: start() it, or use with")
        watched = self._keeper.watched.values()
        parameters = sum(entry.witness.kind == "parameter" for entry in watched)
        return GuardReport(
            steps=self._done,
            parameters=parameters,
            buffers=len(watched) - parameters,
            checks=self._keeper.checks,
            bytes_read=self._keeper.bytes_read,
            seconds=self._seconds,
            restored=self._keeper.restored,
            violations=tuple(self._found.values()),
        )

    # --- what it hears ------------------------------------------------------------------------

    def step(self) -> None:
        """Say that a training step is over, in a loop that updates without a torch optimizer.

        Where one of the given optimizers steps, the guard knows by itself.

        Raises:
            GuardError: (a FrozenChangedError) in mode ``raise``: something does not hold.
            TransitionError: (a RuntimeError) the guard is not watching.
        """
        if self._hooks is None:
            raise TransitionError("this guard is not watching: start() it, or use with")
        with self._working():
            step = self._steps.get(_BY_HAND, 0) + 1
            found = self._moment("guard.step()", step) + self._standing(step)
            self._act(found + self._end_of_step(_BY_HAND, step))

    def forward_enters(self, module: nn.Module) -> None:
        """Of the model or one of its direct children, as long as the guard is there."""
        with self._working():
            self._lateness.note_forward(module)

    def forward_begins(self, module: nn.Module) -> None:
        """Of a module of the model, while forwards are listened to."""
        name = self._keeper.names.get(id(module))
        if name is not None:
            with self._working():
                scope = Scope(kind="forward", name=name, subject=module)
                self._timeline.drop_loads()
                found = self._moment(f"the start of {scope}", self._done + 1, module)
                self._act(found)
                self._timeline.enter(scope)

    def forward_ends(self, module: nn.Module) -> None:
        """Of a module of the model, while forwards are listened to."""
        name = self._keeper.names.get(id(module))
        if name is not None:
            with self._working():
                scope = Scope(kind="forward", name=name, subject=module)
                found = self._moment(f"the end of {scope}", self._done + 1, module)
                self._timeline.leave(module)
                self._act(found)

    def step_begins(self, optimizer: Optimizer) -> None:
        """Of any optimizer in the process."""
        if self._concerns(optimizer):
            with self._working():
                scope = Scope(kind="optimizer", name=type(optimizer).__name__, subject=optimizer)
                step = self._steps.get(id(optimizer), 0) + 1
                found = self._moment(f"the start of {scope}", step) + self._standing(step)
                found += self._lateness.faults(self._keeper.roster, step)
                self._timeline.abandon(optimizer)
                self._act(found)
                self._timeline.enter(scope)

    def step_ends(self, optimizer: Optimizer) -> None:
        """Of any optimizer in the process."""
        if self._concerns(optimizer):
            with self._working():
                step = self._steps.get(id(optimizer), 0) + 1
                found = self._moment(f"the end of {type(optimizer).__name__}.step()", step)
                self._timeline.leave(optimizer)
                self._coverage.note_gradients()
                self._act(found + self._end_of_step(id(optimizer), step))

    def load_begins(self, module: nn.Module) -> None:
        """Of any module of the model; those below it follow."""
        if self._timeline.loading in (None, module):
            with self._working():
                name = self._keeper.names.get(id(module), "")
                found = self._moment("the start of load_state_dict", self._done + 1, whole=True)
                self._timeline.leave(module)
                self._act(found)
                scope = Scope(kind="load_state_dict", name=name, subject=module)
                self._timeline.enter(scope)

    def load_ends(self, module: nn.Module) -> None:
        """Of any module of the model; those below it came before."""
        if self._timeline.loading is module:
            with self._working():
                found = self._moment("the end of load_state_dict", self._done + 1, whole=True)
                self._timeline.leave(module)
                self._act(found)

    # --- what it does -------------------------------------------------------------------------

    def _moment(
        self, words: str, step: int, module: nn.Module | None = None, *, whole: bool = False
    ) -> list[Violation]:
        """Cut the timeline and look at those whose turn it is."""
        self._timeline.cut(words)
        keeper = self._keeper
        if whole:
            entries = list(keeper.watched.values())
        elif module is not None:
            inside = self._timeline.is_inside_forward(module)
            entries = keeper.around(module, outermost=not inside)
        else:
            entries = keeper.armed
        return keeper.look(entries, step=step) if entries else []

    def _standing(self, step: int) -> list[Violation]:
        """What must hold in every step apart from content, before an optimizer can write."""
        found: list[Violation] = []
        if self._keeper.roster.is_stale():
            found += self._keeper.look(self._keeper.replaced(), step=step)
            self._take_stock(step)
        self._coverage.note_gradients()
        return found + self._coverage.faults(self._keeper.roster, step)

    def _take_stock(self, step: int) -> None:
        self._keeper.refresh(step)
        self._coverage.take_in(self._keeper.roster, self._done)
        self._lateness.take_in(self._model, self._keeper.audible)
        self._listen()

    def _end_of_step(self, who: int, step: int) -> list[Violation]:
        """One of those who step is through; the first of them in a round ends the round."""
        self._steps[who] = step
        self._lateness.forget()
        if step <= self._done:
            return []
        self._done = step
        keeper = self._keeper
        now = perf_counter()
        loop_seconds = now - self._step_ended_at - (self._seconds - self._seconds_then)
        self._step_ended_at, self._seconds_then = now, self._seconds
        due: Sequence[Watched] = ()
        if self._every is None:
            self._pace.earn(loop_seconds, ceiling=2 * keeper.whole_cost())
            due = list(self._pace.affordable(list(keeper.watched.values())))
        elif step % self._every == 0:
            due = keeper.not_seen_now()
        found = keeper.look(due, step=step) if due else []
        found += self._coverage.unreached(step, patience=self._patience)
        self._timeline.forget()
        if keeper.armed or found:
            keeper.arm(step + 1)
            self._listen()
        return found

    def _listen(self) -> None:
        assert self._hooks is not None
        self._hooks.hear_entries(self._lateness.entrances)
        self._hooks.hear_loads(self._keeper.modules)
        self._hooks.hear_forwards(self._keeper.audible if self._keeper.armed else [])

    def _last_look(self) -> None:
        found = self._moment("the end of the guard", self._done, whole=True)
        self._take_stock(self._done)
        self._coverage.note_gradients()
        if self._done:
            found += self._coverage.faults(self._keeper.roster, self._done)
            found += self._coverage.unreached(self._done, patience=1)
        self._act(found)

    def _act(self, violations: list[Violation]) -> None:
        """Raise, warn or mend; what was said once is not said again."""
        new = [v for v in violations if self._is_news(v)]
        for violation in violations:
            known = self._found.get((violation.kind, violation.name))
            # The first is kept, but one that names the writer says more than one that could not.
            if known is None or (known.since is not None and violation.since is None):
                self._found[violation.kind, violation.name] = violation
        mended = [v for v in violations if self._on == "restore" and self._mend(v)]
        told = [v for v in new if v not in mended]
        if not told:
            return
        message = describe(told, len(self._keeper.watched))
        if self._on == "raise":
            raise GuardError(message, told)
        # Past the guard's own frames and torch's, to the line of the loop is not knowable.
        warnings.warn(GuardWarning(message), stacklevel=2)

    def _is_news(self, violation: Violation) -> bool:
        """A content change in mode ``raise`` always is; else each tensor once for each kind."""
        if self._on == "raise" and violation.kind == "content":
            return True
        return (violation.kind, violation.name) not in self._found

    def _mend(self, violation: Violation) -> bool:
        """Content was put back when it was found; flags and gradients are now."""
        parameter = self._keeper.roster.named.get(violation.name)
        if violation.kind == "flag" and parameter is not None:
            parameter.requires_grad_(False)
        if violation.kind in ("flag", "gradient") and parameter is not None:
            parameter.grad = None
        return violation.kind in ("content", "flag", "gradient")

    def _concerns(self, optimizer: Optimizer) -> bool:
        """Whether it was given, or holds a parameter of the model all the same."""
        names = self._keeper.names
        return id(optimizer) in self._given or any(
            id(p) in names for group in optimizer.param_groups for p in group["params"]
        )

    @contextmanager
    def _working(self) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        finally:
            self._seconds += perf_counter() - began


def _unwrapped(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizer and those that it wraps, as Accelerate's does: the innermost is who steps."""
    seen: list[Optimizer] = []
    inner: object = optimizer
    while isinstance(inner, Optimizer) and not any(inner is one for one in seen):
        seen.append(inner)
        inner = getattr(inner, "optimizer", None)
    return iter(seen)
