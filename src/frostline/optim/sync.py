"""After the model changed, make its optimizer hold what trains, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from frostline.errors import OptimizerError, TransitionError
from frostline.freezing.boundary import PendingGradients, settle_gradients
from frostline.naming import Inventory, TensorGroup, take_inventory
from frostline.optim.membership import Membership, plan_membership
from frostline.optim.report import SyncReport, group_label
from frostline.optim.schedulers import refuse_misfit
from frostline.optim.trial import constructor_options, initial_states
from frostline.optim.wrappers import bare_optimizer
from frostline.proof.trial import moves_without_gradient

OptimizerState = Literal["fresh", "keep"]
"""What a thawed parameter starts from: nothing, or the optimizer state that it had."""


def sync(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: object = None,
    *,
    state: OptimizerState = "fresh",
    gradients: PendingGradients = "refuse",
) -> SyncReport:
    """Make the optimizer hold what trains in the model now, each parameter in its group.

    Call it after every freeze, thaw, undo and ``load_state_dict(assign=True)``, between steps.
    What trains and is in no group joins the one that was declared for it, or its nearest
    sibling's; what is frozen leaves, and its state with it; a tensor that is no longer in the
    model makes room for the parameter of its name. Other models' parameters are left alone. No
    group comes or goes, so schedulers go on as if nothing had happened. An optimizer that was not
    built by Frostline learns ``declared_names``: what leaves a group comes back to it.

    Args:
        model: the model that the optimizer was built for, wrapped or not.
        optimizer: any optimizer, prepared by Accelerate or Fabric or not; one from
            :func:`frostline.optimizer` knows where all belongs.
        scheduler: its learning-rate scheduler, to have it checked too.
        state: ``fresh``: what thaws starts without momentum and the like. ``keep``: frozen
            parameters stay in their groups with their state, and go on with it when they thaw;
            a replaced tensor hands its state on.
        gradients: a parameter that joins has a gradient pending, which piled up while no
            optimizer used it: ``refuse``, or ``drop`` it.

    Returns:
        What was added, replaced, dropped, kept; ``str()`` of it says so in words.

    Raises:
        OptimizerError: (a ValueError) the optimizer refuses a parameter (Muon takes matrices
            only), no group can be told for one, the scheduler knows other groups, or the
            optimizer moves parameters without a gradient and ``state="keep"``.
        TransitionError: (a RuntimeError) a gradient is pending.
        In each case nothing has changed.

    >>> import frostline as fl, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> frozen = fl.freeze(model, "0")
    >>> optimizer = fl.optimizer(torch.optim.AdamW, model, lr=1e-3)
    >>> thawed = fl.unfreeze(model, "0.bias")
    >>> print(fl.sync(model, optimizer))
    added 1 (0.bias into 'all'); kept 2
    """
    if state not in ("fresh", "keep"):
        raise ValueError(f"state is 'fresh' or 'keep', got {state!r}")
    if scheduler is not None:
        refuse_misfit(optimizer, scheduler)
    optimizer = bare_optimizer(optimizer)
    inventory = take_inventory(model)
    named = _named(inventory.groups)
    plan = plan_membership(inventory, optimizer, hold_frozen=state == "keep")
    restarting = set()
    if state == "fresh":
        new = plan.added.keys() | plan.heirs.keys() | set(plan.declared)
        restarting = {id(named[name]) for name in new}
    elif plan.declared:
        _refuse_writer(optimizer)
    states = _planned_states(optimizer, plan, restarting)
    _settle(inventory, plan, gradients)
    _apply(named, optimizer, plan, states)
    _mark_kept(named, optimizer)
    return SyncReport(
        added=tuple(plan.added),
        groups=tuple(
            group_label(optimizer.param_groups[index], index) for index in plan.added.values()
        ),
        replaced=tuple(plan.heirs),
        dropped=plan.dropped,
        kept=plan.kept,
        declared=plan.declared,
        foreign=plan.foreign,
    )


def _planned_states(optimizer: Optimizer, plan: Membership, restarting: set[int]) -> dict[Any, Any]:
    """The optimizer state as it is to be; what is not in here has none.

    Args:
        optimizer: the optimizer, unchanged as yet.
        plan: what its groups are to hold.
        restarting: ids of the parameters that start without what the optimizer has of them.
    """
    present = dict(optimizer.state)
    if isinstance(optimizer, LBFGS) and (plan.added or plan.heirs or plan.dropped):
        present.clear()  # one flattened history of all parameters: it no longer fits
    for dead, heir in plan.heirs.values():
        if dead in present and dead.shape == heir.shape:
            present[heir] = present[dead]
    planned = {key: value for key, value in present.items() if not isinstance(key, Tensor)}
    for index, (members, group) in enumerate(zip(plan.groups, optimizer.param_groups, strict=True)):
        going_on = [t for t in members if t in present and id(t) not in restarting]
        planned |= {tensor: present[tensor] for tensor in going_on}
        try:
            planned |= initial_states(optimizer, group, members, planned)
        except OptimizerError as error:
            joining = [name for name, home in plan.added.items() if home == index]
            raise OptimizerError(
                f"{', '.join(joining)} can't join group '{group_label(group, index)}'. {error}."
                " Give them an optimizer of their own, or leave them frozen"
            ) from error
    return planned


def _apply(
    named: dict[str, nn.Parameter], optimizer: Optimizer, plan: Membership, states: dict[Any, Any]
) -> None:
    """Nothing in here can fail."""
    names = {id(parameter): name for name, parameter in named.items()}
    for members, group in zip(plan.groups, optimizer.param_groups, strict=True):
        if "param_names" in group:
            recorded = dict(zip(map(id, group["params"]), group["param_names"], strict=False))
            group["param_names"] = [names.get(id(t), recorded.get(id(t), "")) for t in members]
        # What leaves is remembered too: when it thaws it comes back to this group.
        known = dict.fromkeys(group.get("declared_names", ()))
        known |= dict.fromkeys(names[id(t)] for t in (*group["params"], *members) if id(t) in names)
        if known:
            group["declared_names"] = list(known)
        # In place: LBFGS, and whoever else keeps the list, sees the change.
        group["params"][:] = members
    optimizer.state.clear()
    optimizer.state.update(states)
    if isinstance(optimizer, LBFGS):
        optimizer._numel_cache = None
    for parameter in named.values():
        if not parameter.requires_grad:
            parameter.grad = None


def _mark_kept(named: dict[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Write into each group which frozen parameters keep their state on purpose.

    Elsewhere such state is a fault: the guard and the linter look for it.
    """
    frozen = {id(p): name for name, p in named.items() if not p.requires_grad}
    for group in optimizer.param_groups:
        kept = [
            frozen[id(tensor)]
            for tensor in group["params"]
            if id(tensor) in frozen and optimizer.state.get(tensor)
        ]
        if kept:
            group["kept_names"] = kept
        else:
            group.pop("kept_names", None)


def _refuse_writer(optimizer: Optimizer) -> None:
    defaults = constructor_options(optimizer)
    if defaults is not None and moves_without_gradient(type(optimizer), defaults):
        raise OptimizerError(
            f"{type(optimizer).__name__} moves parameters that have no gradient, so it must not"
            " hold frozen ones: state='keep' is not possible with it"
        )


def _settle(inventory: Inventory, plan: Membership, pending: PendingGradients) -> None:
    """What no optimizer used has piled up over many steps: never apply that in one lump."""
    for group in inventory.groups:
        if plan.added.keys().isdisjoint(group.named):
            continue
        try:
            settle_gradients(Inventory((), (group,), ()), pending)
        except TransitionError as error:
            raise TransitionError(
                f"{group.name} joins the optimizer and has a gradient, which piled up while no"
                " optimizer used it: call model.zero_grad() first, or pass gradients='drop'"
            ) from error


def _named(groups: Iterable[TensorGroup]) -> dict[str, nn.Parameter]:
    return {name: parameter for group in groups for name, parameter in group.named.items()}
