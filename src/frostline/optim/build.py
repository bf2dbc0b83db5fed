"""An optimizer that sees what trains, and nothing else unless asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from frostline.errors import OptimizerError
from frostline.naming import take_inventory
from frostline.optim.groups import ParameterGroup, parameter_groups
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

    Every trainable parameter is in exactly one group, tied ones once. Each group carries
    ``name`` and ``param_names`` (canonical names), which ``state_dict`` keeps.

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
        declare_all: also hold the frozen parameters, in the groups where they will train. They
            stay without state until they are thawed, and schedulers know their groups from the
            start. Refused for optimizers that write parameters without a gradient.
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
    if declare_all:
        _refuse_writing_without_gradient(build, defaults)
    built = build([{"params": list(g.parameters), **g.options} for g in groups], **defaults)
    if not isinstance(built, Optimizer):
        raise OptimizerError(
            f"{_name(build)} returned {type(built).__name__}, expected a torch.optim.Optimizer"
        )
    _refuse_unknown_in_groups(built, groups)
    _name_groups(built, groups)
    return built


def _name_groups(built: Optimizer, groups: list[ParameterGroup]) -> None:
    """Write names into the groups by identity: a factory may have regrouped or reordered."""
    names = {
        id(parameter): (name, group.name)
        for group in groups
        for name, parameter in zip(group.parameter_names, group.parameters, strict=True)
    }
    for made in built.param_groups:
        known = [names[id(parameter)] for parameter in made["params"] if id(parameter) in names]
        made["param_names"] = [name for name, _ in known]
        made["name"] = known[0][1] if known else "unknown"


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


def _refuse_writing_without_gradient(
    build: Callable[..., Optimizer], defaults: Mapping[str, Any]
) -> None:
    """Try the optimizer on two small matrices, one of them frozen: does the frozen one move?"""
    torch_state = torch.random.get_rng_state()
    moving, frozen = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    try:
        trial = build([{"params": [moving, frozen]}], **defaults)
        _step(trial, moving, frozen)
        frozen.grad = None
        before = frozen.detach().clone()
        _step(trial, moving)
    except Exception:  # an optimizer that small matrices do not suit says nothing either way
        return
    finally:
        torch.random.set_rng_state(torch_state)
    if not torch.equal(before, frozen.detach()):
        raise OptimizerError(
            f"{_name(build)} moves parameters that have no gradient, so it must not hold frozen"
            " ones: leave declare_all out, and build a new optimizer after a thaw"
        )


def _step(trial: Optimizer, *parameters: nn.Parameter) -> None:
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    trial.step(lambda: 1.0)


def _name(build: Callable[..., Optimizer]) -> str:
    inner = getattr(build, "func", build)
    return str(getattr(inner, "__name__", type(inner).__name__))
