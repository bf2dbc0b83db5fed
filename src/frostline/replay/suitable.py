"""Models that replay leaves alone from the start, and why."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from frostline.naming import walk_modules
from frostline.replay.compiled import why_not_inside
from frostline.replay.sharded_blocks import out_of_step

_MOVES = "which moves or copies its modules. Replay the bare model"
_SHARDS = (
    "whose ranks would have to record and replay in step. Replay the bare model under"
    " DistributedDataParallel"
)
_WRAPPERS = {
    "DataParallel": _MOVES,
    "DeepSpeedEngine": _SHARDS,
    "DistributedDataParallel": "which speaks to other ranks. Wrap the whole model, not a part",
    "FullyShardedDataParallel": _SHARDS,
}
"""Classes of wrappers → what is wrong with them."""


def bare(model: nn.Module) -> nn.Module:
    """The model in DistributedDataParallel; any other itself.

    The wrapper's forward speaks to other ranks (it broadcasts buffers), which trial passes must
    not; inside of it nothing does.

    >>> layer = nn.Linear(2, 2)
    >>> bare(layer) is layer
    True
    """
    while type(model).__name__ == "DistributedDataParallel":
        inner = model.module
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def unsuitable(model: nn.Module) -> str | None:
    """Why the calls of a model's modules can't be caught; None if they can.

    >>> from torch import nn
    >>> unsuitable(nn.Linear(2, 2)) is None
    True
    """
    if _global_forward_hooks or _global_forward_pre_hooks:
        return (
            "a hook for all modules is registered (torch.nn.modules.module), which would not see"
            " the calls that are left out"
        )
    why = out_of_step(model)
    if why is not None:
        return why
    for name, module in walk_modules(model):
        where = name or "the model"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{where} is a TorchScript program, whose calls can't be seen"
        wrapper = type(module).__name__
        if wrapper in _WRAPPERS:
            return f"{where} is wrapped in {wrapper}, {_WRAPPERS[wrapper]}"
        for key, value in vars(module).items():
            if isinstance(value, Iterator):
                return (
                    f"{where} reads from an iterator ({key!r}), which the trial passes of replay"
                    " would move on. Give it what it reads as an input"
                )
    return why_not_inside(model)


def without_cut(model: nn.Module) -> str | None:
    """Why there can be no frost line in a model, as its flags stand now; None if there may be.

    >>> from torch import nn
    >>> without_cut(nn.Linear(2, 2))
    'nothing in the model is frozen: freeze a part of it first'
    """
    if not any(p.requires_grad for p in model.parameters()):
        return "nothing in the model trains: freeze only a part of it"
    if all(p.requires_grad for p in model.parameters()):
        return "nothing in the model is frozen: freeze a part of it first"
    return None
