"""The call: look at a model, what steps it, and, if there is an example, one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.check.context import Context
from frostline.check.finding import Finding
from frostline.check.probe import Probe, run_probe
from frostline.check.registry import RULES
from frostline.freezing.plan import Plan
from frostline.naming import take_inventory


def check(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    scheduler: Any = None,
    *,
    example: Any = None,
    loss: Callable[[Any], Tensor] | None = None,
    plan: Plan | None = None,
) -> list[Finding]:
    """Look for all that is known to go wrong when layers are frozen.

    Call it when everything is built, before the first step, and whenever in doubt. It changes
    nothing. Each finding has a page: ``docs/checks/FL101.md`` and so on.

    Args:
        model: the model, wrapped or not, in the modes and with the flags that it has now.
        optimizer: what steps it, if there is one yet; several in a list.
        scheduler: its learning-rate scheduler; several in a list.
        example: one batch, as ``model(example)``, ``model(*example)`` or ``model(**example)``
            takes it. One step is run on it and undone bit for bit: forward and backward, and
            forward twice more. Meanwhile a copy of the model's tensors is held.
        loss: from the model's output to a number; the output's ``.loss`` by default, or else the
            mean square of what it holds.
        plan: the plan that the model is to follow.

    Returns:
        The findings in the order of their codes; an empty list if there is nothing to say.

    >>> import frostline as fl, torch
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> _ = model[0].requires_grad_(False)
    >>> for finding in fl.check(model, torch.optim.SGD(model[0].parameters(), lr=0.1)):
    ...     print(finding.code, finding.where)
    FL201 1.weight
    FL201 1.bias
    """
    context = Context(
        model=model,
        inventory=take_inventory(model),
        optimizers=_several(optimizer),
        schedulers=tuple(_with_inner(_several(scheduler))),
        plan=plan,
    )
    if example is not None and not context.uninitialised:
        context = replace(context, probe=_probe(context, example, loss))
    return [finding for rule in RULES.values() for finding in rule.findings(context)]


def _probe(context: Context, example: Any, loss: Callable[[Any], Tensor] | None) -> Probe:
    frozen_modules = {id(part.module) for part in context.parts if part.frozen}
    named = [alias for group in context.inventory.groups for alias in group.aliases]
    resting = [alias for alias in named if alias.name in context.frozen]
    resting += [alias for alias in context.inventory.buffers if id(alias.owner) in frozen_modules]
    return run_probe(
        context.model,
        example,
        loss,
        parts=tuple((part.name, part.module, part.frozen) for part in context.parts),
        parameters=context.parameters,
        resting=resting,
    )


def _several(given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    return tuple(given) if isinstance(given, Sequence) else (given,)


def _with_inner(schedulers: Sequence[Any]) -> Iterator[Any]:
    """The schedulers and those that SequentialLR and ChainedScheduler are made of."""
    for scheduler in schedulers:
        yield scheduler
        yield from _with_inner(getattr(scheduler, "_schedulers", ()))
