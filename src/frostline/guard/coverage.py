"""Flags, gradients and groups: is what is frozen left alone, and what trains reached?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from frostline.guard.roster import Fault, Membership, Roster
from frostline.guard.violation import Violation, Writer
from frostline.guard.writers import describe_group


class Coverage:
    """What must hold in every step, apart from content."""

    def __init__(self, optimizers: Sequence[Optimizer], scheduler: Any) -> None:
        self._optimizers = optimizers
        self._scheduler = scheduler
        self._membership = Membership(optimizers)
        self._trained: dict[int, nn.Parameter] = {}
        self._waiting: dict[int, tuple[str, nn.Parameter, int]] = {}

    def take_in(self, roster: Roster, done: int) -> None:
        """Wait for a gradient of each parameter that trains from now, after ``done`` steps, on."""
        trained = {id(p): p for p in roster.trainable.values()}
        self._waiting = {key: entry for key, entry in self._waiting.items() if key in trained}
        for name, parameter in roster.trainable.items():
            if id(parameter) not in self._trained:
                self._waiting[id(parameter)] = (name, parameter, done)
        self._trained = trained

    def note_gradients(self) -> None:
        """Wait no longer for those that have a gradient."""
        if self._waiting:
            self._waiting = {k: e for k, e in self._waiting.items() if e[1].grad is None}

    def unreached(self, done: int, *, patience: int) -> list[Violation]:
        """Trainable parameters that had no gradient for this many steps; each is named once."""
        overdue = {k: e for k, e in self._waiting.items() if done - e[2] >= patience}
        for key in overdue:
            del self._waiting[key]
        detail = (
            "it is trainable, but no gradient reached it in {} steps: is it used in the forward,"
            " and not cut off by detach() or no_grad()? Freeze it if it should not train"
        )
        return [
            Violation(kind="unreached", name=name, step=done, detail=detail.format(done - since))
            for name, _, since in overdue.values()
        ]

    def faults(self, roster: Roster, step: int) -> list[Violation]:
        """Flags, gradients, groups: everything that is wrong at this moment."""
        found = [
            self._untrue(name, parameter, step)
            for name, parameter in roster.frozen.items()
            if parameter.requires_grad or parameter.grad is not None
        ]
        misplaced: list[Fault] = self._membership.faults(roster)
        if self._scheduler is not None:
            misplaced = misplaced + _unscheduled(self._scheduler, roster)
        found += [
            Violation(kind="membership", name=name, step=step, detail=detail)
            for name, detail in misplaced
        ]
        return found

    def _untrue(self, name: str, parameter: nn.Parameter, step: int) -> Violation:
        """A frozen parameter that requires grad, or has a gradient."""
        if parameter.requires_grad:
            detail = (
                "it is frozen, but requires_grad is True again: set by hand, perhaps by"
                " requires_grad_() on a module above it; thaw with fl.unfreeze"
            )
            return Violation(kind="flag", name=name, step=step, detail=detail)
        detail = f"it is frozen, but has {_gradient_of(parameter)}"
        writer = None
        for optimizer in self._optimizers:
            held = describe_group(parameter, optimizer)
            if held is not None:
                text = f"{held} holds it, and would apply decay and momentum with it"
                writer = Writer(kind="optimizer", name=type(optimizer).__name__, text=text)
                detail += f"; {text}"
        detail += (
            ". Call zero_grad(set_to_none=True), or freeze with fl.freeze, which drops gradients"
        )
        return Violation(kind="gradient", name=name, step=step, writer=writer, detail=detail)


def _gradient_of(parameter: nn.Parameter) -> str:
    """A stale gradient in words: all zeros, or how large."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_meta:
        return "a gradient"
    values = gradient._values() if gradient.is_sparse else gradient
    largest = float(values.detach().abs().max()) if values.numel() else 0.0
    return f"a gradient of at most {largest:.3g}" if largest else "a gradient of zeros"


def _unscheduled(scheduler: Any, roster: Roster) -> list[Fault]:
    """Trainable parameters in groups that were added after the scheduler was built."""
    base = getattr(scheduler, "base_lrs", None)
    if base is None:
        return []
    late = {
        id(p) for group in scheduler.optimizer.param_groups[len(base) :] for p in group["params"]
    }
    detail = (
        f"its group was added after the {type(scheduler).__name__} was built, which does not"
        " schedule it: call fl.sync(model, optimizer, scheduler)"
    )
    return [Fault(name, detail) for name, p in roster.trainable.items() if id(p) in late]
