"""An optimizer's state by parameter name, where torch keeps it by position.

Torch loads whatever has the same number of parameters: another layer's momentum goes in without
a word. By name, what does not match is an error, or is mapped on request.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import OptimizerError
from frostline.naming import take_inventory
from frostline.optim.membership import foreign_positions
from frostline.optim.report import group_label
from frostline.optim.trial import initial_states
from frostline.units import format_names

_FORMAT = 1
# Where things belong. The optimizer that is loaded into keeps its own.
_STRUCTURE = frozenset(
    {"params", "param_names", "declared_names", "kept_names", "declare_all", "name"}
)
_BY_SCHEDULER = frozenset({"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"})


@dataclass(frozen=True, kw_only=True)
class ResumeReport:
    """What :func:`frostline.load_optimizer_state` loaded, by parameter name.

    Attributes:
        loaded: parameters whose state was loaded.
        fresh: parameters of the optimizer that start without state, since none fits.
        ignored: parameters whose saved state was left out, since none of that name and shape is
            in the optimizer.
        differences: how the saved state differs from the optimizer and the model, in words.
    """

    loaded: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"loaded the state of {len(self.loaded)} parameters"]
        if self.fresh:
            parts.append(f"{len(self.fresh)} start fresh ({format_names(self.fresh)})")
        if self.ignored:
            parts.append(f"{len(self.ignored)} saved were left out ({format_names(self.ignored)})")
        return "; ".join(parts)


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """The state of an optimizer over one model, keyed by canonical parameter name.

    Holds tensors, numbers, strings, lists and dicts alone, so ``torch.load`` reads it back with
    ``weights_only=True``. The tensors are the live ones, as in ``optimizer.state_dict()``: save
    it at once, or deepcopy it.

    Raises:
        OptimizerError: (a ValueError) the optimizer holds a tensor that is not a parameter of
            the model, or state of a parameter that is in no group.

    >>> import frostline as fl, torch
    >>> from torch import nn
    >>> model = nn.Linear(2, 1)
    >>> state = fl.optimizer_state(fl.optimizer(torch.optim.SGD, model, lr=0.1), model)
    >>> state["groups"][0]["parameters"], state["groups"][0]["options"]["lr"]
    (['weight', 'bias'], 0.1)
    """
    named, members = _members(optimizer, model)
    packed = optimizer.state_dict()
    order = [name for names in members for name in names]
    return {
        "frostline": _FORMAT,
        "optimizer": type(optimizer).__name__,
        "trainable": [name for name, p in named.items() if p.requires_grad],
        "shapes": {name: list(named[name].shape) for name in order},
        "groups": [
            {"name": group_label(group, index), "parameters": names, "options": _options(group)}
            for index, (names, group) in enumerate(
                zip(members, packed["param_groups"], strict=True)
            )
        ],
        "state": {order[k]: v for k, v in packed["state"].items() if isinstance(k, int)},
        "shared": {k: v for k, v in packed["state"].items() if not isinstance(k, int)},
    }


def load_optimizer_state(
    optimizer: Optimizer,
    model: nn.Module,
    state: Mapping[str, Any],
    *,
    repair: bool = False,
) -> ResumeReport:
    """Load what :func:`frostline.optimizer_state` returned, each value to the name it came from.

    Freeze the model as it was, build the optimizer and its scheduler as in the run that stopped,
    then load this, then the scheduler's own ``load_state_dict``.

    Args:
        optimizer: the optimizer to load into.
        model: the model that it was built for.
        state: the saved state; not changed, and not kept.
        repair: where the two differ, load what has the same name and shape, and the options of
            groups of the same name; the rest starts fresh.

    Returns:
        What was loaded and, after a repair, what was not.

    Raises:
        OptimizerError: (a ValueError) without ``repair``: other parameters, groups, shapes or
            options, or others that train. With it too: the state of another optimizer class, or
            no such state at all. Nothing has changed.

    >>> import frostline as fl, torch
    >>> from torch import nn
    >>> model = nn.Linear(2, 1)
    >>> optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    >>> state = fl.optimizer_state(optimizer, model)
    >>> print(fl.load_optimizer_state(optimizer, model, state))
    loaded the state of 2 parameters
    """
    _refuse_other_kind(optimizer, state)
    named, members = _members(optimizer, model)
    differences = _differences(optimizer, state, named, members)
    if differences and not repair:
        raise OptimizerError(
            "the saved optimizer state does not fit:\n- " + "\n- ".join(differences) + "\nFreeze"
            " and build as in the run that was saved, or pass repair=True to load what fits"
        )
    if not differences:
        # The order within a group is the saved one: LBFGS keeps one flat vector of all.
        members = [list(group["parameters"]) for group in state["groups"]]
        for group, names in zip(optimizer.param_groups, members, strict=True):
            group["params"][:] = [named[name] for name in names]
    order = [name for names in members for name in names]
    fits = {name for name in order if state["shapes"].get(name) == list(named[name].shape)}
    optimizer.load_state_dict(_by_position(optimizer, state, members, fits))
    for group in optimizer.param_groups:
        starting = initial_states(optimizer, group, group["params"], optimizer.state)
        optimizer.state.update(starting)
    return ResumeReport(
        loaded=tuple(name for name in order if name in fits),
        fresh=tuple(name for name in order if name not in fits),
        ignored=tuple(name for name in state["shapes"] if name not in fits),
        differences=tuple(differences),
    )


def _members(
    optimizer: Optimizer, model: nn.Module
) -> tuple[dict[str, nn.Parameter], list[list[str]]]:
    """The model's parameters by name, and the names of what each group holds."""
    inventory = take_inventory(model)
    named = {name: p for group in inventory.groups for name, p in group.named.items()}
    names = {id(parameter): name for name, parameter in named.items()}
    strangers = len(foreign_positions(names, optimizer))
    if strangers:
        raise OptimizerError(
            f"the optimizer holds {strangers} tensors that are not parameters of"
            f" {type(model).__name__}: pass the whole model, or call fl.sync(model, optimizer)"
            " after tensors were replaced"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if any(isinstance(key, Tensor) and id(key) not in held for key in optimizer.state):
        raise OptimizerError(
            "the optimizer keeps state of a parameter that is in no group any more, and its"
            " state_dict() would raise KeyError: call fl.sync(model, optimizer) after a freeze"
        )
    return named, [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def _by_position(
    optimizer: Optimizer, state: Mapping[str, Any], members: list[list[str]], fits: set[str]
) -> dict[str, Any]:
    """The saved state as torch's ``load_state_dict`` takes it, a copy."""
    rank = {name: index for index, name in enumerate(n for names in members for n in names)}
    saved = {group["name"]: group["options"] for group in state["groups"]}
    groups = []
    for index, (names, group) in enumerate(zip(members, optimizer.param_groups, strict=True)):
        options = saved.get(group_label(group, index), {})
        merged = {key: options.get(key, value) for key, value in group.items()}
        merged |= {"params": [rank[name] for name in names]}
        if "param_names" in group:
            merged["param_names"] = names
        groups.append(merged)
    states = {rank[name]: value for name, value in state["state"].items() if name in fits}
    # torch takes tensors of the right type and device over as they are: copied, so that training
    # on does not write into what the caller holds.
    return copy.deepcopy({"state": {**state["shared"], **states}, "param_groups": groups})


def _differences(
    optimizer: Optimizer,
    state: Mapping[str, Any],
    named: Mapping[str, nn.Parameter],
    members: list[list[str]],
) -> list[str]:
    trains = [name for name, parameter in named.items() if parameter.requires_grad]
    found = _set_differences(
        state["trainable"], trains, "trains now and did not", "trained and does not now"
    )
    present = [name for names in members for name in names]
    found += _set_differences(
        state["shapes"], present, "is in the optimizer and was not", "was in the optimizer"
    )
    for name in present:
        shape = list(named[name].shape)
        if state["shapes"].get(name, shape) != shape:
            found.append(f"{name} has shape {shape}, and had {state['shapes'][name]}")
    labels = [group_label(group, index) for index, group in enumerate(optimizer.param_groups)]
    saved_labels = [group["name"] for group in state["groups"]]
    if labels != saved_labels:
        return [*found, f"the groups are {labels}, and were {saved_labels}"]
    for label, names, group, saved in zip(
        labels, members, optimizer.param_groups, state["groups"], strict=True
    ):
        if not found and set(names) != set(saved["parameters"]):
            moved = sorted(set(names) ^ set(saved["parameters"]))
            found.append(f"group '{label}' differs by {format_names(moved)}")
        found += _option_differences(label, set(_options(group)), set(saved["options"]))
    return found


def _set_differences(
    saved: Collection[str], present: Collection[str], only_now: str, only_then: str
) -> list[str]:
    then, now = set(saved), set(present)
    new = [name for name in present if name not in then]
    gone = [name for name in saved if name not in now]
    sides = ((new, only_now), (gone, only_then))
    return [f"{format_names(names)} {words}" for names, words in sides if names]


def _option_differences(label: str, present: set[str], saved: set[str]) -> list[str]:
    if present == saved:
        return []
    text = f"group '{label}' has other options: " + ", ".join(
        [f"{key} is new" for key in sorted(present - saved)]
        + [f"{key} is gone" for key in sorted(saved - present)]
    )
    if (saved - present) & _BY_SCHEDULER:
        text += " (a scheduler writes these: build it before loading)"
    return [text]


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in _STRUCTURE}


def _refuse_other_kind(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    if "param_groups" in state:
        raise OptimizerError(
            "this is optimizer.state_dict(), which is by position: save"
            " fl.optimizer_state(optimizer, model), or load it with optimizer.load_state_dict"
        )
    if state.get("frostline") != _FORMAT:
        raise OptimizerError(
            f"not a state that fl.optimizer_state of this version wrote (format {_FORMAT}): its"
            f" format is {state.get('frostline')!r}"
        )
    name = type(optimizer).__name__
    if state["optimizer"] != name:
        raise OptimizerError(f"the saved state is of {state['optimizer']}, this is {name}")
