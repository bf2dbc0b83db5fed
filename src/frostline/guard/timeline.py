"""Where in the step we are: which forwards, optimizer steps and loads have begun and not ended.

Time is cut into intervals by the moments at which one of them begins or ends. A tensor that was as
it should be at one moment and is not at a later one was written in between; whatever was under way
all that time is who wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Scope:
    """A call under way.

    Attributes:
        kind: what sort of call.
        name: the module's canonical name, or the optimizer's class.
        subject: the module or the optimizer.
    """

    kind: Literal["forward", "optimizer", "load_state_dict"]
    name: str
    subject: nn.Module | Optimizer

    def __str__(self) -> str:
        if self.kind == "forward":
            return f"the forward of {self.name or type(self.subject).__name__}"
        return f"{self.name}.step()" if self.kind == "optimizer" else "load_state_dict"


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A stretch of time that is known well enough to say who wrote in it.

    Attributes:
        scope: the innermost call that was under way throughout; None if none was.
        exact: whether nothing inside that call was under way meanwhile.
        between: what had ended before, and what began after.
    """

    scope: Scope | None
    exact: bool
    between: tuple[str, str]


class Timeline:
    """The calls under way, and how deeply they were nested in each interval of late.

    >>> timeline = Timeline()
    >>> before = timeline.cut("the start")
    >>> timeline.enter(Scope(kind="forward", name="fc", subject=nn.Linear(1, 1)))
    >>> now = timeline.cut("the end of fc")
    >>> str(timeline.place(before).scope)
    'the forward of fc'
    """

    def __init__(self) -> None:
        self.stack: list[Scope] = []
        self._moments = ["the start of the guard"]
        self._depths: list[int] = []
        self._first = 0

    @property
    def now(self) -> int:
        """Number of the latest moment."""
        return self._first + len(self._depths)

    def cut(self, moment: str) -> int:
        """End the interval that was running, at a moment described in words; returns its number."""
        self._depths.append(len(self.stack))
        self._moments.append(moment)
        return self.now

    def enter(self, scope: Scope) -> None:
        """A call begins, at the moment of the last cut."""
        self.stack.append(scope)

    def leave(self, subject: object) -> None:
        """A call ends; so do those that began inside it and never said that they ended."""
        for depth in range(len(self.stack) - 1, -1, -1):
            if self.stack[depth].subject is subject:
                del self.stack[depth:]
                return

    def abandon(self, subject: object) -> None:
        """An optimizer's step begins: what cannot enclose it ended by an exception."""
        self.leave(subject)
        while self.stack and self.stack[-1].kind != "optimizer":
            self.stack.pop()

    def drop_loads(self) -> None:
        """A forward begins: no load is under way, one that seems to be has failed."""
        while self.stack and self.stack[-1].kind == "load_state_dict":
            self.stack.pop()

    @property
    def loading(self) -> nn.Module | Optimizer | None:
        """The module whose ``load_state_dict`` is under way, if any."""
        scopes = [scope for scope in self.stack if scope.kind == "load_state_dict"]
        return scopes[0].subject if scopes else None

    def is_inside_forward(self, module: nn.Module) -> bool:
        """Whether the module's forward begins or ends inside the forward of another."""
        around = self.stack[:-1] if self.stack and self.stack[-1].subject is module else self.stack
        return bool(around) and around[-1].kind == "forward"

    def is_under_way(self, subject: object) -> bool:
        """Whether a call of this module or optimizer is under way."""
        return any(scope.subject is subject for scope in self.stack)

    def forget(self) -> None:
        """Forget the intervals so far; what was last seen before now cannot be placed any more."""
        self._first = self.now
        self._moments = self._moments[-1:]
        self._depths = []

    def place(self, since: int) -> Placed | None:
        """What was under way from moment ``since`` to the latest cut; None if it is forgotten.

        Also None where calls began and ended meanwhile with nothing around them: any of them may
        have written. Asked between a cut and the ``enter`` or ``leave`` that goes with it.
        """
        if not self._first <= since < self.now:
            return None
        depths = self._depths[since - self._first :]
        common = min(depths)
        exact = max(depths) == common
        if common == 0 and not exact:
            return None
        return Placed(
            scope=self.stack[common - 1] if common else None,
            exact=exact,
            between=(self._moments[since - self._first], self._moments[-1]),
        )
