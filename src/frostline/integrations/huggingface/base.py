"""What is frozen for the whole of a training: by a plan, or by hand before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from frostline.errors import PlanError
from frostline.freezing import Frozen, Plan, freeze
from frostline.integrations.plans import standing_plan
from frostline.optim import sync
from frostline.proof.trial import moves_without_gradient
from frostline.units import format_names


def freeze_base(model: nn.Module, plan: Plan | None, *, has_schedule: bool) -> Frozen | None:
    """Freeze by a plan; without one hold what is frozen already.

    Args:
        model: the model.
        plan: what to freeze, or None.
        has_schedule: whether a schedule will freeze parts, so that here it need not be any.

    Raises:
        PlanError: (a ValueError) there is no plan, nothing is frozen, and there is no schedule.
    """
    if plan is None:
        if has_schedule and all(parameter.requires_grad for parameter in model.parameters()):
            return None
        plan = standing_plan(model)
    return freeze(model, plan, gradients="drop")


def declare(model: nn.Module, optimizer: Optimizer) -> None:
    """Have the optimizer hold all that it was built with, and no state of what is frozen.

    So its groups have the same size in every phase of a schedule, and a checkpoint of one phase
    loads into the optimizer that a new run begins with. One that moves parameters without a
    gradient can't hold what is frozen.
    """
    if not moves_without_gradient(type(optimizer), optimizer.defaults):
        for group in optimizer.param_groups:
            group["declare_all"] = True
    sync(model, optimizer, gradients="drop")


def refuse_other_base(saved: Mapping[str, Any] | None, frozen: Frozen | None) -> None:
    """Raise PlanError unless a checkpoint's freeze is the one in force here.

    Args:
        saved: ``frozen.state_dict()`` of the run that wrote the checkpoint; None if it had none.
        frozen: the freeze of this run, the checkpoint's weights loaded.
    """
    then, then_buffers = _held(saved)
    now, now_buffers = _held(None if frozen is None else frozen.state_dict())
    # Which buffers stand still changes with a schedule; what those held that do in both does not.
    both = now_buffers.keys() & then_buffers.keys()
    other = [name for name in then.keys() & now.keys() if then[name] != now[name]]
    other += [name for name in both if now_buffers[name] != then_buffers[name]]
    parts = [
        (sorted(then.keys() - now.keys()), "frozen there and not here"),
        (sorted(now.keys() - then.keys()), "frozen here and not there"),
        (sorted(other), "frozen with other content"),
    ]
    differences = [f"{format_names(names)} {words}" for names, words in parts if names]
    if differences:
        raise PlanError(
            f"the checkpoint is of a run that froze something else: {'; '.join(differences)}."
            " Resume with the plan and the base model of that run, or begin a new one from the"
            " checkpoint's weights: Model.from_pretrained(checkpoint), then train() without"
            " resume_from_checkpoint"
        )


def _held(state: Mapping[str, Any] | None) -> tuple[dict[str, str], dict[str, str]]:
    """Name → fingerprint of the parameters that a freeze holds, and of the buffers."""
    if state is None:
        return {}, {}
    prints = {name: entry["frozen"] for name, entry in state["parameters"].items()}
    return {name: found for name, found in prints.items() if found is not None}, state["buffers"]
