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
from frostline.proof.surroundings import Surroundings


@contextmanager
def no_traces(model: nn.Module, *, parameters: bool = True) -> Iterator[None]:
    """Whatever runs inside, the model and the random generators are restored bit for bit.

    Args:
        model: the model.
        parameters: as :class:`Snapshot` has it.

    >>> import torch
    >>> norm = nn.BatchNorm1d(2)
    >>> with no_traces(norm):
    ...     _ = norm(torch.randn(4, 2))
    >>> norm.num_batches_tracked.item()
    0
    """
    snapshot = Snapshot(model, parameters=parameters)
    try:
        snapshot.silence_step_hooks()
        yield
    finally:
        snapshot.restore()


class Snapshot:
    """A model and the random generators as they are now, to be put back bit for bit.

    Held are parameters, buffers and tensors in plain attributes (content and identity), gradients,
    ``requires_grad``, every attribute of every module, hooks and configurations included, the
    random states of Python, NumPy and torch, and what the code of hooks and of ``forward`` reaches
    by closures and global names (:mod:`frostline.proof.surroundings`). What is done elsewhere
    (files, other processes) stays done.

    Args:
        model: the model.
        parameters: whether the contents of parameters are copied too; without, what is written
            into parameters stays written.

    >>> layer = nn.Dropout(0.1)
    >>> before = Snapshot(layer)
    >>> layer.p = 0.9
    >>> before.restore()
    >>> layer.p
    0.1
    """

    def __init__(self, model: nn.Module, *, parameters: bool = True) -> None:
        modules = [
            module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)
        ]
        self._attributes = [(vars(module), dict(vars(module))) for module in modules]
        tensors = {id(t): t for _, held in self._attributes for t in _tensors(held)}.values()
        self._tensors = [
            _Kept(tensor)
            for tensor in tensors
            if parameters or not isinstance(tensor, nn.Parameter)
        ]
        self._step_hooks = [_post_accumulate_hooks(tensor) for tensor in tensors]
        self._surroundings = Surroundings(modules)
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._torch = torch.get_rng_state()
        self._devices = [(index, torch.cuda.get_rng_state(index)) for index in _devices(tensors)]

    def silence_step_hooks(self) -> None:
        """Take away hooks by which an optimizer steps inside backward, until :meth:`restore`."""
        for hooks, _ in self._step_hooks:
            hooks.clear()

    def restore(self) -> None:
        """Put all of it back."""
        torch.set_rng_state(self._torch)
        for index, state in self._devices:
            torch.cuda.set_rng_state(state, index)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        for hooks, saved in self._step_hooks:
            hooks.update(saved)
        for held, before in self._attributes:
            held.clear()
            held.update(before)
        self._surroundings.restore()
        for tensor in self._tensors:
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


def _post_accumulate_hooks(tensor: Tensor) -> tuple[dict[Any, Any], dict[Any, Any]]:
    hooks = getattr(tensor, "_post_accumulate_grad_hooks", None) or {}
    return hooks, dict(hooks)


def _devices(tensors: Any) -> list[int]:
    indices = {tensor.get_device() for tensor in tensors if tensor.is_cuda}
    return sorted(indices)
