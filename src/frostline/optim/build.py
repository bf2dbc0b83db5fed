"""An optimizer that sees what trains, and nothing else unless asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import OptimizerError
from frostline.naming import take_inventory
from frostline.optim.groups import ParameterGroup, parameter_groups
from frostline.proof.trial import moves_without_gradient
from frostline.selection import SelectorLike
from frostline.selection.suggest import nearest


def optimizer(
    build: Callable[..., Optimizer],
    model: nn.Module,
    *,
    lr: float | None = None,
    layer_decay: float | None = None,
    no_decay: Sequence[SelectorLike] = (),
    options: Mapping[Any, Mapping[str, Any]] | None = None,
    declare_all: bool = False,
    **defaults: Any,
) -> Optimizer:
    """Build an optimizer over the trainable parameters of a model, in named groups.

    Every trainable parameter is in exactly one group, tied ones once. A group in which all is
    frozen is there too, without parameters: :func:`frostline.sync` fills it after a thaw, and
    learning-rate schedulers have known it from the start. Each group carries ``name``,
    ``param_names`` and ``declared_names`` (canonical names of what it holds, and of what belongs
    there once it trains), which ``state_dict`` keeps.

    Args:
        build: an optimizer class, or any callable that takes parameter groups first and returns
            an optimizer (``functools.partial``, a factory of another library).
        model: the model, wrapped or not; freeze before building.
        lr: the learning rate; the class's own default if left out.
        layer_decay: factor by which the learning rate falls from each layer to the one below;
            the top layer has ``lr``. Layers as in :func:`frostline.selection.depth.layer_depths`.
        no_decay: what gets ``weight_decay=0``: the words ``"bias"`` (parameters of that name) and
            ``"norm"`` (those of normalisation layers), or selectors.
        options: selector → options for what it matches; later entries override earlier ones.
        declare_all: also hold the frozen parameters, in the groups where they will train, so
            that a thaw needs no :func:`frostline.sync`. They stay without state until then.
            Refused for optimizers that write parameters without a gradient.
        defaults: further options of the optimizer, such as ``weight_decay`` or ``betas``.

    Raises:
        OptimizerError: (a ValueError) nothing is trainable, an option is unknown, or
            ``declare_all`` with an optimizer that moves parameters without a gradient.
        SelectorError: (a ValueError) a selector matches nothing.

    >>> import frostline as fl, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> frozen = fl.freeze(model, "0")
    >>> opt = fl.optimizer(torch.optim.AdamW, model, lr=1e-3, no_decay=["bias"], weight_decay=0.1)
    >>> [(group["name"], group["param_names"], group["weight_decay"]) for group in opt.param_groups]
    [('all', ['1.weight'], 0.1), ('no decay', ['1.bias'], 0.0)]
    """
    if not callable(build):
        raise OptimizerError(
            f"expected an optimizer class or a factory, such as torch.optim.AdamW, got {build!r}"
        )
    if lr is not None:
        defaults["lr"] = lr
    inventory = take_inventory(model)
    if not any(p.requires_grad for group in inventory.groups for p in group.named.values()):
        raise OptimizerError(
            f"{type(model).__name__} has no trainable parameter: unfreeze a part of it first"
            " (fl.unfreeze(model, 'head'))"
        )
    _refuse_unknown(build, defaults)
    groups = parameter_groups(
        inventory,
        lr=lr,
        layer_decay=layer_decay,
        no_decay=no_decay,
        options=options or {},
        declare_all=declare_all,
    )
    if declare_all and moves_without_gradient(build, defaults):
        raise OptimizerError(
            f"{_name(build)} moves parameters that have no gradient, so it must not hold frozen"
            " ones: leave declare_all out, and call fl.sync(model, optimizer) after a thaw"
        )
    built = build([_as_taken(group, defaults) for group in groups], **defaults)
    if not isinstance(built, Optimizer):
        raise OptimizerError(
            f"{_name(build)} returned {type(built).__name__}, expected a torch.optim.Optimizer"
        )
    _refuse_unknown_in_groups(built, groups)
    names = {id(p): name for group in inventory.groups for name, p in group.named.items()}
    _name_groups(built, groups, names, declare_all)
    return built


def _as_taken(group: ParameterGroup, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A learning rate that is a tensor is copied: shared, one group's schedule sets them all."""
    options = dict(group.options)
    rate = options.get("lr", defaults.get("lr"))
    if isinstance(rate, Tensor):
        options["lr"] = rate.clone()
    return {"params": list(group.parameters), **options}


def _name_groups(
    built: Optimizer, groups: list[ParameterGroup], names: Mapping[int, str], declare_all: bool
) -> None:
    """Write into the groups what belongs in them, by name.

    There it survives deepcopy, pickle and ``state_dict``; whatever is kept beside an optimizer
    does not.
    """
    held = [[id(parameter) for parameter in made["params"]] for made in built.param_groups]
    as_asked = held == [[id(parameter) for parameter in group.parameters] for group in groups]
    for index, made in enumerate(built.param_groups):
        made["param_names"] = [names.get(id(parameter), "") for parameter in made["params"]]
        if as_asked:
            made["name"] = groups[index].name
            made["declared_names"] = list(groups[index].declared_names)
            made["declare_all"] = declare_all
        else:  # a factory that regroups: what belongs where is its own business
            made["name"] = _common_name(made["params"], groups)


def _common_name(parameters: Sequence[Tensor], groups: list[ParameterGroup]) -> str:
    of = {id(parameter): group.name for group in groups for parameter in group.parameters}
    return next((of[id(parameter)] for parameter in parameters if id(parameter) in of), "unknown")


def _refuse_unknown(build: Callable[..., Optimizer], defaults: Mapping[str, Any]) -> None:
    try:
        accepted = inspect.signature(build).parameters
    except (TypeError, ValueError):  # a callable without a readable signature checks for itself
        return
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
        return
    for key in defaults:
        if key not in accepted:
            options = list(accepted)[1:]
            raise OptimizerError(
                f"{_name(build)} has no option {key!r}.{nearest(key, options)}"
                f" All options: {', '.join(options)}"
            )


def _refuse_unknown_in_groups(built: Optimizer, groups: list[ParameterGroup]) -> None:
    """Torch itself keeps an unknown key in a group without a word, and it has no effect."""
    for group in groups:
        for key in group.options:
            if key not in built.defaults:
                raise OptimizerError(
                    f"{type(built).__name__} has no option {key!r} for group '{group.name}'."
                    f"{nearest(key, built.defaults)}"
                )


def _name(build: Callable[..., Optimizer]) -> str:
    inner = getattr(build, "func", build)
    return str(getattr(inner, "__name__", type(inner).__name__))
