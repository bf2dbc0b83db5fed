"""Does a learning-rate scheduler still fit its optimizer?"""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import Optimizer

from frostline.errors import OptimizerError

# What torch's schedulers keep one of for each group.
_PER_GROUP = ("base_lrs", "lr_lambdas", "max_lrs", "base_momentums", "max_momentums", "min_lrs")
# They compute a group's next rate from its present one and go by no list, so a group that joined
# later is scheduled all the same.
_BY_PRESENT_RATE = frozenset({"StepLR", "MultiStepLR", "ExponentialLR", "PolynomialLR"})


def refuse_misfit(optimizer: Optimizer, scheduler: object) -> None:
    """Raise OptimizerError if the scheduler drives another optimizer, or other groups.

    Synchronising never adds a group, so a scheduler that fits goes on fitting. One that does not
    was broken before, by ``add_param_group``.
    """
    count = len(optimizer.param_groups)
    for part in _parts(scheduler):
        name = type(part).__name__
        driven = getattr(part, "optimizer", optimizer)
        # A wrapper (Accelerate's) keeps the optimizer that the scheduler drives inside.
        if driven is not optimizer and driven is not getattr(optimizer, "optimizer", optimizer):
            raise OptimizerError(
                f"this {name} drives another optimizer ({type(driven).__name__}): pass the one"
                " that was built on this optimizer"
            )
        if _BY_PRESENT_RATE & {base.__name__ for base in type(part).__mro__}:
            continue
        for key in _PER_GROUP:
            known = getattr(part, key, None)
            if key == "min_lrs" and getattr(part, "default_min_lr", None) is not None:
                continue  # ReduceLROnPlateau lengthens this list by itself
            if known is not None and len(known) != count:
                raise OptimizerError(
                    f"{name} knows {len(known)} groups ({key}) and {type(optimizer).__name__} has"
                    f" {count}: a group was added after the scheduler was built, and its learning"
                    " rate would be wrong or the next step would fail. Build both anew, with all"
                    " groups there from the start (fl.optimizer declares them)"
                )


def _parts(scheduler: object) -> Iterator[object]:
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _parts(part)
