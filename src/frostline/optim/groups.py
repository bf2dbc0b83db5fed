"""Which parameters share an optimizer group, and with which options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from frostline.errors import OptimizerError
from frostline.naming import Inventory, TensorGroup
from frostline.selection import SelectorLike, as_selector, select_in
from frostline.selection.depth import layer_depths


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """One group as an optimizer takes it.

    Attributes:
        name: what sets the group apart, such as ``layer 3, no decay``; ``all`` if nothing does.
        parameter_names: canonical names, in definition order.
        parameters: the parameters, in the order of their names; may be none.
        declared_names: names of all that belongs here, what is frozen for now included.
        options: options that differ from the optimizer's defaults, learning rate included.
    """

    name: str
    parameter_names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...] = field(repr=False)
    declared_names: tuple[str, ...]
    options: Mapping[str, Any]


def parameter_groups(
    inventory: Inventory,
    *,
    lr: float | None,
    layer_decay: float | None,
    no_decay: Sequence[SelectorLike],
    options: Mapping[Any, Mapping[str, Any]],
    declare_all: bool,
) -> list[ParameterGroup]:
    """Sort a model's parameters into groups of equal options, in definition order.

    Which groups there are does not depend on what is frozen: a group may be empty until a part
    of it is thawed, and a scheduler that was built in between has known it from the start. See
    :func:`frostline.optimizer` for the arguments. Raises SelectorError for a selector that
    matches nothing, OptimizerError for options that contradict each other.
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise OptimizerError(f"layer_decay must be above 0 and at most 1, got {layer_decay}")
    if layer_decay is not None and lr is None:
        raise OptimizerError("layer_decay scales the learning rate: pass lr=… along with it")
    depths = layer_depths(inventory) if layer_decay is not None else [0] * len(inventory.groups)
    undecayed = _without_decay(inventory, no_decay)
    chosen = [(as_selector(select), given) for select, given in options.items()]
    found = [set(select.find(inventory)) for select, _ in chosen]
    sorted_groups: dict[tuple[Any, ...], list[TensorGroup]] = {}
    for index, group in enumerate(inventory.groups):
        if declare_all or any(_can_train(p) for p in group.named.values()):
            rules = tuple(n for n, matches in enumerate(found) if index in matches)
            key = (depths[index], index in undecayed, rules)
            sorted_groups.setdefault(key, []).append(group)
    result = []
    for (depth, is_undecayed, rules), members in sorted_groups.items():
        merged: dict[str, Any] = {"weight_decay": 0.0} if is_undecayed else {}
        for rule in rules:
            merged.update(chosen[rule][1])
        labels = [str(chosen[rule][0]) for rule in rules] + ["no decay"] * is_undecayed
        if layer_decay is not None:
            merged["lr"] = merged.get("lr", lr) * layer_decay ** (max(depths) - depth)
            labels.insert(0, f"layer {depth}")
        _refuse_zero_rate(merged.get("lr", lr), labels)
        result.append(_group(", ".join(labels) or "all", members, merged, declare_all))
    return result


def _group(
    name: str, members: list[TensorGroup], options: dict[str, Any], declare_all: bool
) -> ParameterGroup:
    named = {
        key: parameter
        for group in members
        for key, parameter in group.named.items()
        if declare_all or parameter.requires_grad
    }
    return ParameterGroup(
        name=name,
        parameter_names=tuple(named),
        parameters=tuple(named.values()),
        declared_names=tuple(name for group in members for name in group.named),
        options=options,
    )


def _refuse_zero_rate(rate: object, labels: list[str]) -> None:
    """A learning rate of 0 freezes nothing: Rprop moves all the same, schedulers raise it again."""
    if isinstance(rate, float | int | Tensor) and float(rate) == 0:
        raise OptimizerError(
            f"lr=0 for group '{', '.join(labels) or 'all'}' is no freeze: some optimizers move it"
            " all the same, and a scheduler may raise it again. Use fl.freeze, and leave it out"
        )


def _can_train(parameter: nn.Parameter) -> bool:
    """Whether it may ever have a gradient: int8 weights never will."""
    return parameter.is_floating_point() or parameter.is_complex()


def _without_decay(inventory: Inventory, no_decay: Sequence[SelectorLike]) -> set[int]:
    """Indices of groups that weight decay leaves alone.

    ``bias`` and ``norm`` are words, not selectors: a model without biases or norms is no
    mistake, and norm layers go by many names (``ln_1``, ``LayerNorm``, ``bn2``).
    """
    found: set[int] = set()
    for rule in [no_decay] if isinstance(no_decay, str) else no_decay:
        if rule == "bias" or rule == "norm":
            found |= {
                index
                for index, group in enumerate(inventory.groups)
                if any(
                    a.name.rpartition(".")[2] == "bias" if rule == "bias" else is_norm(a.owner)
                    for a in group.aliases
                )
            }
        else:
            selected = {id(group) for group in select_in(inventory, as_selector(rule)).groups}
            found |= {i for i, group in enumerate(inventory.groups) if id(group) in selected}
    return found


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, by torch's classes or by its class name.

    >>> from torch import nn
    >>> is_norm(nn.LayerNorm(4)), is_norm(nn.BatchNorm2d(4)), is_norm(nn.Linear(4, 4))
    (True, True, False)
    """
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None
