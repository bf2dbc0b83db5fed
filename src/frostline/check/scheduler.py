"""FL3xx: schedulers that steer another optimizer, or fewer groups than there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from frostline.check.context import Context
from frostline.check.finding import Hit, rule

_LISTS = ("base_lrs", "lr_lambdas", "max_lrs")

# What a class does when a group has joined after it was built (torch 2.13, each tried).
_RAISES = "its step() raises ValueError"
_CONSEQUENCES = {
    "LambdaLR": _RAISES,
    "MultiplicativeLR": _RAISES,
    "CyclicLR": _RAISES,
    "CosineAnnealingLR": f"{_RAISES} at the end of a period",
    "CosineAnnealingWarmRestarts": _RAISES,
    "ConstantLR": "it multiplies the new group's rate without having divided it before",
    "LinearLR": "it multiplies the new group's rate without having divided it before",
}
# These change each group by its own rate alone, so groups that join are scheduled rightly.
_UNAFFECTED = {"StepLR", "MultiStepLR", "ExponentialLR", "PolynomialLR"}


@rule(
    "FL301",
    "scheduler-of-another",
    fix="build the scheduler on the optimizer that steps, anew with each new optimizer",
)
def scheduler_of_another(context: Context) -> Iterator[Hit]:
    """A scheduler steers an optimizer that is not the one that steps."""
    for scheduler in context.schedulers:
        own = getattr(scheduler, "optimizer", None)
        # AcceleratedOptimizer and the like hold the real one inside.
        known = [*context.optimizers, *(getattr(o, "optimizer", None) for o in context.optimizers)]
        if context.optimizers and own is not None and not any(own is other for other in known):
            yield Hit(
                type(scheduler).__name__,
                f"steers another {type(own).__name__} than the one given: learning rates of the one"
                " that steps never change",
            )


@rule(
    "FL302",
    "group-without-schedule",
    fix="declare all groups at the start (fl.optimizer(declare_all=True)), or call fl.sync",
)
def group_without_schedule(context: Context) -> Iterator[Hit]:
    """A scheduler was built for fewer, or more, groups than its optimizer has."""
    for scheduler in context.schedulers:
        optimizer = getattr(scheduler, "optimizer", None)
        consequence = _consequence(scheduler, getattr(optimizer, "param_groups", []))
        if consequence is not None:
            yield Hit(type(scheduler).__name__, consequence)


def _consequence(scheduler: Any, groups: list[dict[str, Any]]) -> str | None:
    """What goes wrong with a scheduler on these groups; None if nothing does."""
    classes = {base.__name__ for base in type(scheduler).__mro__}
    if "OneCycleLR" in classes:
        lacking = [n for n, g in enumerate(groups) if not {"initial_lr", "max_lr"} <= g.keys()]
        if lacking:
            return f"group {lacking[0]} joined after it was built: its step() raises KeyError"
        return None
    if "ReduceLROnPlateau" in classes:
        count = len(scheduler.min_lrs)
        if count != len(groups) and scheduler.default_min_lr is None:
            return (
                f"{_counts(count, groups)}: it raises RuntimeError when it first reduces the rate"
            )
        return None
    if classes & _UNAFFECTED:
        return None
    for key in _LISTS:
        count = len(getattr(scheduler, key, groups))
        if count != len(groups):
            known = [text for name, text in _CONSEQUENCES.items() if name in classes]
            return (
                f"{_counts(count, groups)}: {known[0] if known else 'it may raise, or misses one'}"
            )
    return None


def _counts(count: int, groups: list[dict[str, Any]]) -> str:
    return f"was built for {count} group{'s' * (count != 1)}, and the optimizer has {len(groups)}"


RULES = (scheduler_of_another, group_without_schedule)
