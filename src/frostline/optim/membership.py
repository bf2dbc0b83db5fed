"""Which parameter belongs in which group of an optimizer, as the model stands now."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import OptimizerError
from frostline.naming import Inventory
from frostline.optim.siblings import Place, Siblings


@dataclass(frozen=True, kw_only=True)
class Membership:
    """What the groups of an optimizer are to hold.

    Attributes:
        groups: for each group, the tensors that it is to hold.
        added: name → index of the group that it joins, in definition order.
        heirs: name → (tensor that is no longer in the model, parameter that takes its place).
        dropped: names of what leaves: frozen, or gone from the model.
        kept: names of what trains and was there.
        declared: names of what is frozen and stays.
        foreign: number of tensors that are not this model's and stay.
    """

    groups: tuple[tuple[Tensor, ...], ...]
    added: Mapping[str, int]
    heirs: Mapping[str, tuple[Tensor, nn.Parameter]]
    dropped: tuple[str, ...]
    kept: tuple[str, ...]
    declared: tuple[str, ...]
    foreign: int


class _Model(NamedTuple):
    """A model's parameters: the name of each by identity, and the parameter of every name."""

    names: Mapping[int, str]
    parameters: Mapping[str, nn.Parameter]
    aliases: Mapping[str, nn.Parameter]


@dataclass(kw_only=True)
class _Draft:
    """A membership in the making; ``placed`` has the ids of all that is in a group."""

    groups: list[list[Tensor]]
    placed: set[int]
    added: dict[str, int] = field(default_factory=dict)
    heirs: dict[str, tuple[Tensor, nn.Parameter]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    declared: list[str] = field(default_factory=list)
    foreign: int = 0


def plan_membership(inventory: Inventory, optimizer: Optimizer, *, hold_frozen: bool) -> Membership:
    """Decide who stays, leaves and joins; changes nothing.

    Args:
        inventory: the model's parameters.
        optimizer: any optimizer; groups made by :func:`frostline.optimizer` know what belongs
            in them by name.
        hold_frozen: leave frozen parameters in their groups.

    Raises:
        OptimizerError: for a parameter no group can be told.
    """
    model = _model(inventory)
    _refuse_other_names(model, optimizer)
    dead = _dead(model, optimizer)
    draft = _Draft(
        groups=[[] for _ in optimizer.param_groups],
        placed={id(tensor) for group in optimizer.param_groups for tensor in group["params"]},
    )
    for index, group in enumerate(optimizer.param_groups):
        hold = hold_frozen or bool(group.get("declare_all"))
        for position, tensor in enumerate(group["params"]):
            if (index, position) in dead:
                _replace(tensor, _recorded(group, position), draft, index, model, hold)
            else:
                _stay(tensor, draft, index, model, hold)
    _join(draft, model, optimizer, dead)
    for members, group in zip(draft.groups, optimizer.param_groups, strict=True):
        _in_declared_order(members, group, model)
    order = {name: rank for rank, name in enumerate(model.parameters)}
    return Membership(
        groups=tuple(map(tuple, draft.groups)),
        added=draft.added,
        heirs=draft.heirs,
        dropped=tuple(draft.dropped),
        kept=tuple(sorted(draft.kept, key=order.__getitem__)),
        declared=tuple(sorted(draft.declared, key=order.__getitem__)),
        foreign=draft.foreign,
    )


def _stay(tensor: Tensor, draft: _Draft, index: int, model: _Model, hold: bool) -> None:
    name = model.names.get(id(tensor))
    if name is None:
        draft.foreign += 1
    elif tensor.requires_grad:
        draft.kept.append(name)
    elif hold:
        draft.declared.append(name)
    else:
        draft.dropped.append(name)
        return
    draft.groups[index].append(tensor)


def _replace(
    dead: Tensor, recorded: str, draft: _Draft, index: int, model: _Model, hold: bool
) -> None:
    heir = model.aliases.get(recorded)
    if heir is None or id(heir) in draft.placed or not (hold or heir.requires_grad):
        draft.dropped.append(recorded or f"(unnamed, shape {list(dead.shape)})")
        return
    draft.placed.add(id(heir))
    draft.heirs[model.names[id(heir)]] = (dead, heir)
    draft.groups[index].append(heir)
    if not heir.requires_grad:
        draft.declared.append(model.names[id(heir)])


def _join(draft: _Draft, model: _Model, optimizer: Optimizer, dead: set[tuple[int, int]]) -> None:
    """Place what is in no group: where it was declared, else with its nearest sibling."""
    homes = _declared_homes(draft, model, optimizer)
    ranks = {name: rank for rank, name in enumerate(model.parameters)}
    siblings: Siblings | None = None
    for name, parameter in model.parameters.items():
        home = homes.get(name)
        if id(parameter) in draft.placed:
            continue
        if parameter.requires_grad:
            if home is None:
                siblings = siblings or _siblings(draft, model, homes, ranks)
                if siblings:
                    home = siblings.group_for(Place(name, parameter.ndim, ranks[name], -1))
                else:
                    home = _only_vacant_group(name, draft, optimizer, dead)
            draft.added[name] = home
        elif home is not None and optimizer.param_groups[home].get("declare_all"):
            draft.declared.append(name)
        else:
            continue
        draft.groups[home].append(parameter)


def _declared_homes(draft: _Draft, model: _Model, optimizer: Optimizer) -> dict[str, int]:
    """Name → the group that has declared it, where that is certain."""
    found: dict[str, set[int]] = {}
    for index, group in enumerate(optimizer.param_groups):
        members = draft.groups[index]
        # Another model in the same optimizer may use the same names for other things.
        if not members or any(id(tensor) in model.names for tensor in members):
            for name in group.get("declared_names", ()):
                found.setdefault(name, set()).add(index)
    return {name: min(groups) for name, groups in found.items() if len(groups) == 1}


def _siblings(
    draft: _Draft, model: _Model, homes: Mapping[str, int], ranks: Mapping[str, int]
) -> Siblings:
    known = {name: home for name, home in homes.items() if name in model.parameters}
    for index, members in enumerate(draft.groups):
        known |= {model.names[id(t)]: index for t in members if id(t) in model.names}
    return Siblings(
        Place(name, model.parameters[name].ndim, ranks[name], home) for name, home in known.items()
    )


def _only_vacant_group(
    name: str, draft: _Draft, optimizer: Optimizer, dead: set[tuple[int, int]]
) -> int:
    """Nothing of the model is left to go by: the group that holds nothing, or held it."""
    vacant = {index for index, members in enumerate(draft.groups) if not members}
    vacant |= {index for index, _ in dead}
    if len(vacant) == 1:
        return vacant.pop()
    raise OptimizerError(
        f"{name} trains, and no group of {type(optimizer).__name__} can be told for it: the"
        " optimizer holds no other parameter of this model. Build it with fl.optimizer, which"
        " declares where everything belongs"
    )


def _model(inventory: Inventory) -> _Model:
    parameters = {name: p for group in inventory.groups for name, p in group.named.items()}
    aliases = {alias.name: alias.tensor for group in inventory.groups for alias in group.aliases}
    return _Model(
        names={id(parameter): name for name, parameter in parameters.items()},
        parameters=parameters,
        aliases=cast("Mapping[str, nn.Parameter]", aliases),
    )


def foreign_positions(names: Mapping[int, str], optimizer: Optimizer) -> list[tuple[int, int]]:
    """(group, position) of each tensor of the optimizer that ``names`` (by id) doesn't know."""
    return [
        (index, position)
        for index, group in enumerate(optimizer.param_groups)
        for position, key in enumerate(map(id, group["params"]))
        if key not in names
    ]


def _dead(model: _Model, optimizer: Optimizer) -> set[tuple[int, int]]:
    """Positions of tensors that were the model's and are parameters of nothing any more.

    ``load_state_dict(assign=True)`` leaves them behind, and so does replacing a layer. A tensor
    that any living module holds is another model's. Of those that none holds, one with a name of
    this model's is dead; one without may be a user's own (a temperature), unless nobody but the
    optimizer refers to it.
    """
    foreign = foreign_positions(model.names, optimizer)
    if not foreign:
        return set()
    living = _owned_by_modules(
        [optimizer.param_groups[index]["params"][position] for index, position in foreign]
    )
    dead = set()
    for index, position in foreign:
        group = optimizer.param_groups[index]
        if id(group["params"][position]) in living:
            continue
        recorded = _recorded(group, position)
        ours = recorded in model.aliases or recorded in group.get("declared_names", ())
        if ours or _is_abandoned(group["params"], position, optimizer):
            dead.add((index, position))
    return dead


def _is_abandoned(parameters: list[Tensor], position: int, optimizer: Optimizer) -> bool:
    """Whether only the optimizer still refers to a tensor, which then can never train."""
    own = 1 + (parameters[position] in optimizer.state)
    # One more is the reference that getrefcount itself holds.
    return sys.getrefcount(parameters[position]) <= own + 1


def _owned_by_modules(tensors: Sequence[Tensor]) -> set[int]:
    """Ids of those that are a parameter of some module, found by who refers to them."""
    # Twice through the heap in C, for any number of tensors; a walk in Python takes far longer.
    mappings = [held for held in gc.get_referrers(*tensors) if type(held) is dict]
    owned = {id(vars_["_parameters"]) for vars_ in _module_variables(mappings)}
    return {id(value) for held in mappings if id(held) in owned for value in held.values()}


def _module_variables(mappings: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for referrer in gc.get_referrers(*mappings) if mappings else ():
        # By type, not isinstance: that asks the object for its class, and proxies may raise.
        if issubclass(type(referrer), nn.Module):
            yield vars(referrer)
        elif type(referrer) is dict and type(referrer.get("_parameters")) is dict:
            yield referrer


def _recorded(group: Mapping[str, Any], position: int) -> str:
    names = group.get("param_names", ())
    return str(names[position]) if position < len(names) else ""


def _refuse_other_names(model: _Model, optimizer: Optimizer) -> None:
    """A part of the model has names that mean something else in the groups, or nothing."""
    declared = {n for g in optimizer.param_groups for n in g.get("declared_names", ())}
    for group in optimizer.param_groups:
        for key in map(id, group["params"]) if "declared_names" in group else ():
            if model.names.get(key, "") not in declared and key in model.names:
                raise OptimizerError(
                    f"{model.names[key]} is in the optimizer under another name: pass the model"
                    " that it was built for, not a part of it"
                )


def _in_declared_order(members: list[Tensor], group: Mapping[str, Any], model: _Model) -> None:
    """As ``fl.optimizer`` would build the group now, so that a resumed run has the same order."""
    rank = {name: position for position, name in enumerate(group.get("declared_names", ()))}
    if rank:
        members.sort(key=lambda tensor: rank.get(model.names.get(id(tensor), ""), len(rank)))
