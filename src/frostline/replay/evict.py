"""Frozen tensors that a replay does not touch, out of memory until they are wanted again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frostline.proof.fingerprint import has_plain_content
from frostline.replay.stand_in import StandIn

_SMALLEST = 4096
"""Bytes below which a tensor is left where it is."""


class Eviction:
    """Moves tensors into a file that is mapped back: the memory is free, the content is there.

    A tensor of the CPU stays whole for whoever reads it, since the system brings the pages back
    as they are touched. One of another device is brought back before its module runs, by a hook.

    Args:
        modules: whose tensors are to go, with those of the modules below.
        keep: tensors that are used elsewhere and stay.

    >>> layer = nn.Linear(64, 64)
    >>> before = layer.weight.detach().clone()
    >>> eviction = Eviction([layer], keep=[])
    >>> eviction.nbytes, torch.equal(layer.weight, before)
    (16384, True)
    >>> eviction.bring_back()
    """

    def __init__(self, modules: Iterable[nn.Module], keep: Iterable[Tensor]) -> None:
        kept = {tensor.untyped_storage().data_ptr() for tensor in keep}
        modules = list({id(module): module for module in modules}.values())
        tensors = {
            id(tensor): tensor
            for module in modules
            for tensor in (*module.parameters(), *module.buffers())
            if tensor.untyped_storage().data_ptr() not in kept
        }
        self._moved: list[tuple[Tensor, torch.device]] = []
        self._hooks: list[Any] = []
        self.nbytes = 0
        for tensor in tensors.values():
            if has_plain_content(tensor) and tensor.nbytes >= _SMALLEST:
                self._moved.append((tensor, tensor.device))
                self.nbytes += tensor.nbytes
                tensor.data = _mapped(tensor)
        if any(device.type != "cpu" for _, device in self._moved):
            self._hooks = [module.register_forward_pre_hook(self._before) for module in modules]

    def bring_back(self) -> None:
        """Put all of it where it was; a second time nothing happens."""
        for hook in self._hooks:
            hook.remove()
        for tensor, device in self._moved:
            tensor.data = tensor.data.to(device, copy=True)
        self._moved, self._hooks = [], []

    def _before(self, module: nn.Module, args: Any) -> None:
        if not isinstance(vars(module).get("forward"), StandIn):
            self.bring_back()


def tensors_elsewhere(
    model: nn.Module, modules: Iterable[nn.Module], names: Collection[str]
) -> list[Tensor]:
    """The model's tensors that are not, or not only, in some modules and those below.

    Args:
        model: the whole model.
        modules: the modules.
        names: further tensors that are used elsewhere.
    """
    inside = {id(below) for module in modules for below in module.modules()}
    elsewhere = [
        tensor
        for module in model.modules()
        if id(module) not in inside
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    ]
    named = (*model.named_parameters(), *model.named_buffers())
    return elsewhere + [tensor for name, tensor in named if name in names]


def _mapped(tensor: Tensor) -> Tensor:
    """The same content and strides, lying in a file that goes when the tensor goes."""
    dense = tensor.detach().cpu()
    strides = dense.stride()
    order = sorted(range(dense.ndim), key=lambda dim: -strides[dim])
    laid = dense.permute(order).contiguous()
    descriptor, path = tempfile.mkstemp(prefix="frostline-evicted-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            laid.reshape(-1).view(torch.uint8).numpy().tofile(file)
        flat = torch.from_file(path, shared=False, size=laid.numel(), dtype=laid.dtype)
    finally:
        Path(path).unlink()  # the mapping keeps the content, and nothing is left if we are killed
    back = sorted(range(dense.ndim), key=order.__getitem__)
    return flat.view(laid.shape).permute(back)
