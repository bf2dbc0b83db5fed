"""What an optimizer of some class starts with, found out on a throwaway one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from frostline.errors import OptimizerError


def initial_states(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    members: Sequence[Tensor],
    states: Mapping[Tensor, dict[str, Any]],
) -> dict[Tensor, dict[str, Any]]:
    """The state that members of a group must start with which have none in ``states``.

    Most classes make state at the first step. Adagrad makes it when built, and before torch 2.13
    it fails on a parameter that has none. Fused SGD fails where only some have a momentum.

    Raises:
        OptimizerError: the optimizer can't take them in (Muon, what is not a matrix).
    """
    bare = [tensor for tensor in members if tensor not in states]
    return _from_constructor(optimizer, group, bare) | _fused_momentum(
        optimizer, group, bare, [states[tensor] for tensor in members if tensor in states]
    )


def _from_constructor(
    optimizer: Optimizer, group: Mapping[str, Any], bare: Sequence[Tensor]
) -> dict[Tensor, dict[str, Any]]:
    options = {key: value for key, value in group.items() if key in optimizer.defaults}
    defaults = constructor_options(optimizer)
    if defaults is None or not bare:
        return {}
    random_state = torch.random.get_rng_state()
    try:
        twin = type(optimizer)([{**options, "params": list(bare)}], **defaults)
    except ValueError as error:
        raise OptimizerError(f"{type(optimizer).__name__} can't hold this: {error}") from error
    except Exception:  # an optimizer that can't be built twice alike has to do without
        return {}
    finally:
        torch.random.set_rng_state(random_state)
    return {tensor: twin.state[tensor] for tensor in bare if tensor in twin.state}


def _fused_momentum(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    bare: Sequence[Tensor],
    others: Sequence[Mapping[str, Any]],
) -> dict[Tensor, dict[str, Any]]:
    """A momentum of zeros, which is what none means, unless there is dampening."""
    joining = [tensor for tensor in bare if tensor.requires_grad]
    mixed = joining and any(state.get("momentum_buffer") is not None for state in others)
    if not (isinstance(optimizer, SGD) and group.get("fused") and mixed):
        return {}
    if group["dampening"]:
        raise OptimizerError(
            "fused SGD with dampening can't take in a parameter after its first step: pass"
            " fused=False"
        )
    return {tensor: {"momentum_buffer": torch.zeros_like(tensor)} for tensor in joining}


def constructor_options(optimizer: Optimizer) -> dict[str, Any] | None:
    """Keyword arguments that build an optimizer like this one; None if that can't be told."""
    accepted = list(inspect.signature(type(optimizer)).parameters.values())[1:]
    known = {p.name: optimizer.defaults[p.name] for p in accepted if p.name in optimizer.defaults}
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    if any(
        p.default is p.empty and p.name not in known and p.kind not in variadic for p in accepted
    ):
        return None
    return known
