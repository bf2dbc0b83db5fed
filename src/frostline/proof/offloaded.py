"""Weights that accelerate's offloading keeps elsewhere: what hangs in the module has no content."""

from __future__ import annotations

from torch import Tensor, nn


def content_of(owner: nn.Module, key: str, tensor: Tensor) -> Tensor:
    """The tensor that holds the content: itself, unless accelerate's ``cpu_offload`` took it away.

    Between forwards that leaves a tensor on meta in the module, and two of those are always equal:
    a proof that looked at them would prove nothing.

    Args:
        owner: the module in which the tensor hangs.
        key: its name there.
        tensor: what hangs there now.

    >>> import torch
    >>> layer = nn.Linear(1, 1)
    >>> content_of(layer, "weight", layer.weight) is layer.weight
    True
    """
    if not tensor.is_meta:
        return tensor
    hook = getattr(owner, "_hf_hook", None)
    for each in (hook, *getattr(hook, "hooks", ())):
        kept = getattr(each, "weights_map", None)
        if kept is not None:
            content: Tensor = kept[key]
            return content
    return tensor
