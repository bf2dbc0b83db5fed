"""Who wrote it, in words, with what made it write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.guard.timeline import Placed, Scope
from frostline.guard.violation import Writer
from frostline.naming import memory_span

_SHOWN = ("lr", "weight_decay", "momentum", "betas")


def name_writer(
    tensor: Tensor,
    placed: Placed,
    *,
    cause: str,
    names: Mapping[int, str],
    given: Sequence[Optimizer],
    deaf: bool,
) -> Writer:
    """Who was writing when the tensor changed.

    Args:
        tensor: the frozen tensor.
        placed: where in the step it changed.
        cause: what can be seen on the tensor and its module afterwards, with the mend.
        names: id of each of the model's parameters → its canonical name.
        given: the optimizers that the guard was given.
        deaf: whether forwards could not be heard, as of a model that is compiled in place.
    """
    scope = placed.scope
    if scope is None:
        before, after = placed.between
        text = (
            f"something outside every {'' if deaf else 'forward and '}optimizer step, between"
            f" {before} and {after}: {'a compiled forward, ' if deaf else ''}the loop's own code or"
            " a hook, by .data, a NumPy view or an in-place operation"
        )
        return Writer(kind="outside", name="", text=text)
    inside = "" if placed.exact else ", or a call inside it"
    if isinstance(scope.subject, Optimizer):
        text = _optimizer_text(tensor, scope.subject, names, given)
        return Writer(kind="optimizer", name=scope.name, text=f"{scope}{inside}, {text}")
    if scope.kind == "load_state_dict":
        whole = f" of '{scope.name}'" if scope.name else ""
        text = f"load_state_dict{whole}: load before freezing, or thaw first"
        return Writer(kind="load_state_dict", name=scope.name, text=text)
    return Writer(kind="forward", name=scope.name, text=_forward_text(scope, inside, cause))


def candidate(tensor: Tensor, *, cause: str, given: Sequence[Optimizer]) -> Writer:
    """Whom to suspect when the guard was not looking while it happened."""
    held = next((found for o in given if (found := describe_group(tensor, o)) is not None), None)
    text = f"a writer that was not placed in time (every=1 places each). Suspect: {held or cause}"
    return Writer(kind="unknown", name="", text=text)


def describe_group(tensor: Tensor, optimizer: Optimizer) -> str | None:
    """The group that holds a tensor, with the options that move weights; None if none does."""
    for index, group in enumerate(optimizer.param_groups):
        if any(parameter is tensor for parameter in group["params"]):
            return f"{type(optimizer).__name__} {_group(index, group)}"
    return None


def _group(index: int, group: Mapping[str, Any]) -> str:
    named = f" '{group['name']}'" if "name" in group else ""
    options = ", ".join(f"{key}={group[key]}" for key in _SHOWN if key in group)
    return f"group {index}{named} ({options})"


def _optimizer_text(
    tensor: Tensor, optimizer: Optimizer, names: Mapping[int, str], given: Sequence[Optimizer]
) -> str:
    stranger = "" if any(optimizer is one for one in given) else " (not given to the guard)"
    for index, group in enumerate(optimizer.param_groups):
        if any(parameter is tensor for parameter in group["params"]):
            if tensor.grad is None:
                why = "although it has no gradient: keep what is frozen out of this optimizer"
            else:
                why = (
                    "with its stale gradient, which lets weight decay and momentum through:"
                    " zero_grad(set_to_none=True), or freeze with fl.freeze"
                )
            return f"whose {_group(index, group)} holds it{stranger}, {why}"
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if _share_memory(tensor, parameter):
                other = names.get(id(parameter), "a parameter of another model")
                return (
                    f"whose {_group(index, group)} holds {other}{stranger}, which lies on the same"
                    " memory: freeze or train both"
                )
    return f"of which no group holds it{stranger}: the step, or a hook of it, wrote"


def _share_memory(one: Tensor, other: Tensor) -> bool:
    first, second = memory_span(one), memory_span(other)
    if first is None or second is None or first[0] != second[0]:
        return False
    return first[1] < second[2] and second[1] < first[2]


def _forward_text(scope: Scope, inside: str, cause: str) -> str:
    assert isinstance(scope.subject, nn.Module)
    mode = "train" if scope.subject.training else "eval"
    who = f"the forward of '{scope.name}' ({type(scope.subject).__name__}){inside}"
    if not scope.name:
        who = f"the forward of the model ({type(scope.subject).__name__}){inside}"
    return f"{who}, which ran in {mode} mode; {cause}"
