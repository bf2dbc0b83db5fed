"""``fl.guard``: the call that most people need."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn
from torch.optim import Optimizer

from frostline.errors import OptimizerError
from frostline.guard.session import Guard, Reaction


def guard(
    model: nn.Module,
    *optimizers: Optimizer,
    scheduler: Any = None,
    on: Reaction = "raise",
    every: int | None = None,
    patience: int = 50,
) -> Guard:
    """Check, while a model trains, that nothing frozen moves and nothing trainable is missed.

    In every step of the given optimizers: frozen parameters have ``requires_grad=False`` and no
    gradient; every trainable parameter is in exactly one group; no group keeps state for a frozen
    one. The content of what is frozen, bit by bit: all of it around every forward and step in the
    first step (and in the first after a freeze), which names who writes; then a few tensors a step
    in turn; all of it around each ``load_state_dict`` and at the end.

    Guarded are the parameters that a freeze holds or that do not require grad when the guard
    starts, and the buffers of modules that a freeze pinned to eval mode. A freeze, thaw or undo
    inside the guard moves what is guarded. Training is bit for bit what it is without a guard.

    Args:
        model: the model that trains, wrapped or not.
        optimizers: all optimizers that train it; none for a loop that calls ``guard.step()``.
        scheduler: the learning-rate scheduler, to see that it knows all groups.
        on: ``raise`` at once; ``warn`` once for each tensor, and go on; ``restore`` the frozen
            value, and go on. To restore, the guard holds a copy of everything frozen, in the
            memory of the host; otherwise copies of at most 64 MiB.
        every: compare all content after every so many steps; 1 compares it at every moment of
            every step, so that whoever writes is named exactly. None spaces the comparisons so
            that they take 0.3 % of the loop's time.
        patience: steps within which a gradient must have reached every trainable parameter. All
            are asked for at the end, too.

    Returns:
        The guard, a context manager; afterwards its ``report`` says what it did.

    Raises:
        GuardError: (a FrozenChangedError) from inside the loop, or at its end: names each tensor,
            the step, the amount, and who wrote it.
        OptimizerError: (a ValueError) something else was given as an optimizer, or a scheduler of
            another optimizer.

    >>> import frostline as fl, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> frozen = fl.freeze(model, "0")
    >>> opt = fl.optimizer(torch.optim.AdamW, model, lr=1e-3)
    >>> with fl.guard(model, opt) as guard:
    ...     for _ in range(3):
    ...         model(torch.randn(4, 8)).sum().backward()
    ...         opt.step()
    ...         opt.zero_grad()
    >>> guard.report.steps, guard.report.violations
    (3, ())
    """
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise OptimizerError(
                f"expected torch optimizers after the model, got {type(optimizer).__name__};"
                " a scheduler is given as scheduler=…"
            )
    driven = getattr(scheduler, "optimizer", None)
    if driven is not None and optimizers and not any(driven is one for one in optimizers):
        raise OptimizerError(
            f"the {type(scheduler).__name__} schedules a {type(driven).__name__} that the guard was"
            " not given: fl.guard(model, optimizer, scheduler=scheduler)"
        )
    if on not in get_args(Reaction):
        raise ValueError(f"on is 'raise', 'warn' or 'restore', got {on!r}")
    for option, value in (("every", every), ("patience", patience)):
        if value is not None and value < 1:
            raise ValueError(f"{option} counts steps and is at least 1, got {value}")
    return Guard(model, optimizers, scheduler=scheduler, on=on, every=every, patience=patience)
