"""The hooks by which a guard hears of forwards, optimizer steps and loads.

Steps are heard through torch's process-wide hooks, and other optimizers are ignored. Torch wraps
the ``step`` of each class, so one that calls ``super().step()`` is heard twice; only the outermost
of an optimizer's nested steps is passed on. For forwards
torch has such hooks too, but while one is there it compiles nothing. So each module gets its own,
only while they are needed; except where torch would then compute otherwise. The model and its
direct children keep one, which tells that a forward enters them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle


class Listener(Protocol):
    """Who is told."""

    def forward_enters(self, module: nn.Module) -> None:
        """A forward of the model, or of one of its direct children, begins."""

    def forward_begins(self, module: nn.Module) -> None:
        """A module's forward begins, of whatever model."""

    def forward_ends(self, module: nn.Module) -> None:
        """A module's forward ends, also by an exception."""

    def step_begins(self, optimizer: Optimizer) -> None:
        """An optimizer's outermost step begins, of whatever optimizer."""

    def step_ends(self, optimizer: Optimizer) -> None:
        """An optimizer's outermost step ends, unless by an exception."""

    def load_begins(self, module: nn.Module) -> None:
        """``load_state_dict`` comes to a module, or was called on it."""

    def load_ends(self, module: nn.Module) -> None:
        """``load_state_dict`` is through with a module and all below it."""


class _Tap:
    """A hook on a module. A copied or unpickled one is silent: no guard watches the copy."""

    def __init__(self, tell: Callable[[nn.Module], None] | None = None) -> None:
        self._tell = tell

    def __call__(self, module: nn.Module, *_: Any) -> None:
        # Under torch.compile it is traced along with the model; then it must do nothing.
        if not torch.compiler.is_compiling() and self._tell is not None:
            self._tell(module)

    def __reduce__(self) -> tuple[type[_Tap], tuple[()]]:
        return type(self), ()


class Hooks:
    """What is registered for one listener, so that all of it can be removed."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._entries: list[RemovableHandle] = []
        self._forwards: list[RemovableHandle] = []
        self._loads: list[RemovableHandle] = []
        self._entries_to: list[nn.Module] = []
        self._forwards_of: list[nn.Module] = []
        self._loads_on: list[nn.Module] = []
        self._steps = [
            register_optimizer_step_pre_hook(self._step_begins),
            register_optimizer_step_post_hook(self._step_ends),
        ]

    def hear_loads(self, modules: list[nn.Module]) -> None:
        """Hear of loads into exactly these modules."""
        if modules is self._loads_on:
            return
        _remove(self._loads)
        self._loads_on = modules
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            begins, ends = _Tap(self._listener.load_begins), _Tap(self._listener.load_ends)
            self._loads += [
                module.register_load_state_dict_pre_hook(begins),  # type: ignore[no-untyped-call]
                module.register_load_state_dict_post_hook(ends),  # type: ignore[no-untyped-call]
            ]

    def hear_entries(self, modules: list[nn.Module]) -> None:
        """Hear of forwards that enter exactly these modules."""
        if [id(m) for m in modules] == [id(m) for m in self._entries_to]:
            return
        _remove(self._entries)
        self._entries_to = modules
        for module in modules:
            tap = _Tap(self._listener.forward_enters)
            self._entries.append(module.register_forward_pre_hook(tap, prepend=True))

    def hear_forwards(self, modules: list[nn.Module]) -> None:
        """Hear of forwards of exactly these modules."""
        if modules is self._forwards_of:
            return
        _remove(self._forwards)
        self._forwards_of = modules
        for module in modules:
            begins = _Tap(self._listener.forward_begins)
            ends = _Tap(self._listener.forward_ends)
            self._forwards += [
                module.register_forward_pre_hook(begins, prepend=True),
                # always_call: early-stopped recomputation under checkpointing ends a forward by an
                # exception, and so does a batch that fails.
                module.register_forward_hook(ends, always_call=True),
            ]

    def remove(self) -> None:
        """Leave nothing behind."""
        for handles in (self._entries, self._forwards, self._loads, self._steps):
            _remove(handles)
        self._entries_to, self._forwards_of, self._loads_on = [], [], []

    def _step_begins(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling() and not _is_nested(optimizer, sys._getframe(1)):
            self._listener.step_begins(optimizer)

    def _step_ends(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling() and not _is_nested(optimizer, sys._getframe(1)):
            self._listener.step_ends(optimizer)


def audible(model: nn.Module) -> list[nn.Module]:
    """The modules whose forwards can be heard, without torch computing otherwise.

    Not inside what is compiled or scripted, which runs no hooks, and not in a
    TransformerEncoderLayer, which leaves its fast path when a hook is on it, and rounds apart.
    """
    found: dict[int, nn.Module] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        deaf = isinstance(module, (torch.jit.ScriptModule, nn.TransformerEncoderLayer))
        if deaf or module._compiled_call_impl is not None or id(module) in found:
            continue
        found[id(module)] = module
        if "_orig_mod" not in module._modules:  # what torch.compile() wraps
            waiting.extend(child for child in module._modules.values() if child is not None)
    return list(found.values())


def _is_nested(optimizer: Optimizer, step: FrameType) -> bool:
    """Whether a step runs inside another of the same optimizer.

    Read off the calls that are under way, since a count of them would be wrong from the first step
    on that ends by an exception, of which torch tells nobody.

    Args:
        optimizer: who steps.
        step: the frame of torch's wrapper around its step, which calls the hooks.
    """
    around = step.f_back
    while around is not None:
        if around.f_code is step.f_code and around.f_locals.get("self") is optimizer:
            return True
        around = around.f_back
    return False


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
