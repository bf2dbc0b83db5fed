"""An example batch, and what a model makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frostline.nests import tensors_in


def call(model: nn.Module, example: Any) -> Any:
    """Call the model on a batch: a mapping by keywords, a tuple or list by position.

    >>> call(nn.Identity(), (1,))
    1
    """
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, tuple | list):
        return model(*example)
    return model(example)


def own_copy(value: Any) -> Any:
    """The same nest of mappings, tuples and lists with tensors that a model may write into."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        return {key: own_copy(held) for key, held in value.items()}
    if isinstance(value, tuple | list):
        return tuple(own_copy(held) for held in value)
    return value


def default_loss(output: Any) -> Tensor:
    """The output's own ``.loss``, or else the mean square of every number in it."""
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    numbers = [t for t in tensors_in(output) if t.is_floating_point() or t.is_complex()]
    if not numbers:
        raise TypeError(
            f"the model returned {type(output).__name__} without a tensor of numbers: pass loss=, a"
            " function of the model's output"
        )
    return torch.stack([number.abs().square().float().mean() for number in numbers]).sum()
