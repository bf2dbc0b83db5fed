"""Run a model and leave it as it was: tensors, gradients, modes, hooks, random states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frostline.proof.fingerprint import as_bytes, fingerprint, has_plain_content

_CONTAINERS = (dict, list, set)


@contextmanager
def no_traces(model: nn.Module) -> Iterator[None]:
    """Whatever runs inside, the model and the random generators are restored bit for bit.

    Restored are parameters, buffers and tensors in plain attributes (content and identity),
    gradients, ``requires_grad``, every attribute of every module, hooks included, and the random
    states of Python, NumPy and torch. A copy of the model's tensors is held meanwhile. What the
    model's code does elsewhere (files, global variables) stays done.

    >>> import torch
    >>> norm = nn.BatchNorm1d(2)
    >>> with no_traces(norm):
    ...     _ = norm(torch.randn(4, 2))
    >>> norm.num_batches_tracked.item()
    0
    """
    modules = [
        module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)
    ]
    attributes = [(vars(module), dict(vars(module))) for module in modules]
    containers = [
        (value, value.copy())
        for _, held in attributes
        for value in held.values()
        if isinstance(value, _CONTAINERS)
    ]
    tensors = {id(t): t for _, held in attributes for t in _tensors(held)}
    kept = [_Kept(tensor) for tensor in tensors.values()]
    step_hooks = [_post_accumulate_hooks(tensor) for tensor in tensors.values()]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        for hooks, _ in step_hooks:
            hooks.clear()  # an optimizer that steps inside backward would move the weights
        with torch.random.fork_rng(devices=_devices(tensors.values())):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for hooks, saved in step_hooks:
            hooks.update(saved)
        for held, before in attributes:
            held.clear()
            held.update(before)
        for container, copy in containers:
            _refill(container, copy)
        for tensor in kept:
            tensor.restore()


class _Kept:
    """A tensor with its content, gradient and flag as they were."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.gradient = tensor.grad if tensor.is_leaf else None
        self.gradient_content = None if self.gradient is None else self.gradient.detach().clone()
        self.requires_grad = tensor.requires_grad
        self.content = tensor.detach().clone()

    def restore(self) -> None:
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.requires_grad)
            self.tensor.grad = self.gradient
        _put_back(self.tensor, self.content)
        if self.gradient is not None and self.gradient_content is not None:
            _put_back(self.gradient, self.gradient_content)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits.

    >>> import torch
    >>> same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    False
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if has_plain_content(one) and has_plain_content(other):
        return torch.equal(as_bytes(one), as_bytes(other))
    return fingerprint(one) == fingerprint(other)


def _put_back(tensor: Tensor, content: Tensor) -> None:
    if not same_bits(tensor, content):
        # .data: a graph that the caller still holds must not see its saved tensors as modified.
        if tensor.shape == content.shape:
            tensor.data.copy_(content)
        else:
            tensor.data = content


def _tensors(held: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among a module's attributes, parameters and buffers."""
    for value in (*held.values(), *held["_parameters"].values(), *held["_buffers"].values()):
        if isinstance(value, Tensor):
            yield value


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


def _post_accumulate_hooks(tensor: Tensor) -> tuple[dict[Any, Any], dict[Any, Any]]:
    hooks = getattr(tensor, "_post_accumulate_grad_hooks", None) or {}
    return hooks, dict(hooks)


def _devices(tensors: Any) -> list[int]:
    indices = {tensor.get_device() for tensor in tensors if tensor.is_cuda}
    return sorted(indices)
