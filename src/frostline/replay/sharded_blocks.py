"""Modules that ``fully_shard`` (FSDP2) has given hooks which gather and drop their parameters."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from frostline.shards import sharded_parameters


def is_block(module: nn.Module) -> bool:
    """Whether ``fully_shard`` was called on a module.

    >>> is_block(nn.Linear(2, 2))
    False
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where there is one, it is loaded
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def blocks_of(model: nn.Module, *, below: bool = False) -> list[Any]:
    """The blocks of a model, in its order.

    Args:
        model: the model.
        below: whether the model itself is left out, if it is one.

    >>> blocks_of(nn.Linear(2, 2))
    []
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    return [
        module for module in model.modules() if is_block(module) and not (below and module is model)
    ]


def groups_of(block: Any) -> list[Any]:
    """The groups of parameters that are gathered together before a block runs.

    >>> from types import SimpleNamespace
    >>> state = SimpleNamespace(_fsdp_param_group="the only one")
    >>> groups_of(SimpleNamespace(_get_fsdp_state=lambda: state))
    ['the only one']
    """
    state = block._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)  # one alone before torch 2.12
    return list(groups if groups is not None else filter(None, [state._fsdp_param_group]))


def come_to_rest(model: nn.Module) -> None:
    """Mark the blocks below a model as not running: a trial pass may have been left halfway.

    >>> come_to_rest(nn.Linear(2, 2))
    """
    for block in blocks_of(model, below=True):
        state = block._get_fsdp_state()
        state._training_state = type(state._training_state).IDLE
        for group in groups_of(block):
            group._training_state = state._training_state


digests_over_ranks: Any = WeakTensorKeyDictionary()
"""Shard → digest of what all ranks hold of it; filled where all ranks are."""


def over_ranks(tensor: Tensor, own: str) -> str:
    """The digest of what all ranks hold of a sharded tensor; of any other its ``own``.

    >>> import torch
    >>> over_ranks(torch.ones(2), "a digest")
    'a digest'
    """
    found: str = digests_over_ranks.get(tensor, own)
    return found


def out_of_step(model: nn.Module) -> str | None:
    """Why the ranks over which a model is spread can't record and replay in step; None if they can.

    >>> out_of_step(nn.Linear(2, 2)) is None
    True
    """
    shards = {id(parameter) for parameter in sharded_parameters(model).values()}
    blocks = blocks_of(model)
    if any(len(block._get_fsdp_state()._modules) > 1 for block in blocks):
        return "fully_shard was given several modules at once: give it one at a time"
    groups = [group for block in blocks for group in groups_of(block)]
    if any(held.is_dtensor for group in groups for held in group.fsdp_params):
        return "it is both tensor parallel and sharded, and tensor parallel parts talk as they run"
    gathered = {
        id(held._unsharded_param)
        for group in groups
        for held in group.fsdp_params
        if hasattr(held, "_unsharded_param")
    }
    known = shards | gathered
    if any(hasattr(p, "device_mesh") and id(p) not in known for p in model.parameters()):
        return "tensor parallel parts talk as they run, which a pass that is left out would not"
    return None
