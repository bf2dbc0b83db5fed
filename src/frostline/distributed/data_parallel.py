"""DistributedDataParallel while layers freeze and thaw: its reducer holds exactly what trains.

The wrapper notes what trains once, when it is built. What thaws later is not averaged, what
freezes later is waited for. Here its reducer is built anew in place, by the steps that torch
takes when a wrapper is unpickled: the wrapper stays the object that the loop, a Trainer or
``torch.compile`` holds, with all its options, and no weight is sent.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

# What carries no types, being torch's own.
_torch: Any = distributed

# Wrappers whose reducer will be built anew when the transition at hand is over.
_in_transition: WeakSet[DistributedDataParallel] = WeakSet()


class Parallel:
    """A wrapper whose reducer follows what trains.

    Args:
        wrapper: the model's DistributedDataParallel.

    Attributes:
        wrapper: the same object for good.
    """

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        self.wrapper = wrapper
        self._known = set(reduced_parameters(wrapper))
        self._ignored_before = frozenset(wrapper.parameters_to_ignore)

    @contextmanager
    def transition(self) -> Iterator[None]:
        """Freeze and thaw inside; afterwards the wrapper reduces what trains then.

        On all ranks alike. If it fails inside, the wrapper follows what stands all the same.
        """
        _in_transition.add(self.wrapper)
        try:
            yield
        finally:
            _in_transition.discard(self.wrapper)
            self._follow()

    def align(self) -> None:
        """Give all ranks the first one's buffers, before some of them freeze.

        Each rank's BatchNorm has seen batches of its own, and the wrapper would hand out the
        first rank's statistics with the next forward: frozen ones would move. One that does not
        broadcast leaves each rank its own.
        """
        wrapper = self.wrapper
        if wrapper.broadcast_buffers and (buffers := list(wrapper.module.buffers())):
            _torch._broadcast_coalesced(
                wrapper.process_group, buffers, wrapper.broadcast_bucket_size, 0
            )

    def leave_out(self, resting: Iterable[Tensor]) -> None:
        """Broadcast these buffers no more, and all others again.

        The names go where torch looks them up before each forward.
        """
        keys = {id(buffer) for buffer in resting}
        names = [name for name, buffer in self.wrapper.module.named_buffers() if id(buffer) in keys]
        self.wrapper.parameters_to_ignore = {*self._ignored_before, *names}
        wrapper: Any = self.wrapper
        wrapper._assign_modules_buffers()

    def _follow(self) -> None:
        ignored = self._ignored_before
        trains = {
            id(parameter)
            for name, parameter in self.wrapper.module.named_parameters()
            if parameter.requires_grad and name not in ignored
        }
        # With nothing to reduce there is no reducer; torch would not wrap such a model either.
        if trains and trains != self._known:
            _build_reducer(self.wrapper)
            self._known = trains


def has_peers() -> bool:
    """Whether this process is one of several in a process group."""
    available = distributed.is_available() and distributed.is_initialized()
    return available and distributed.get_world_size() > 1


def reduced_parameters(wrapper: DistributedDataParallel) -> dict[int, Tensor]:
    """Identity → parameter of all whose gradients the wrapper averages."""
    buckets: Any = wrapper.reducer._get_zeros_like_grad_buckets()
    return {id(parameter): parameter for bucket in buckets for parameter in bucket.parameters()}


def live_wrappers(model: nn.Module) -> list[DistributedDataParallel]:
    """Every wrapper in the process that holds a parameter of the model, inside it or around it.

    A wrapper leaves no mark on what it wraps, so the interpreter's objects are gone through: some
    ten milliseconds, spent only where there is a process group.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return []
    mine = {id(parameter) for parameter in model.parameters()}

    def found() -> list[DistributedDataParallel]:
        # By type(): isinstance would ask proxies, which may be dead, for their class.
        every = [o for o in gc.get_objects() if issubclass(type(o), DistributedDataParallel)]
        return [w for w in every if any(id(p) in mine for p in w.parameters())]

    inside = {id(module) for module in model.modules()}
    wrappers = found()
    if all(id(wrapper) in inside for wrapper in wrappers):
        return wrappers
    del wrappers
    gc.collect()  # a wrapper that was dropped may wait for it: its parts refer to each other
    return found()


def unreduced(model: nn.Module, thawing: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Of the parameters that are about to train, those whose gradients no wrapper would average.

    Empty where a rank is alone, where no wrapper holds the model, and during a
    :meth:`Parallel.transition`.
    """
    parameters = list(thawing)
    if not parameters or not has_peers():
        return []
    looked_after = {id(p) for wrapper in _in_transition for p in wrapper.parameters()}
    if all(id(parameter) in looked_after for parameter in parameters):
        return []
    wrappers = live_wrappers(model)
    held = {
        id(parameter)
        for wrapper in wrappers
        for name, parameter in wrapper.module.named_parameters()
        if name not in wrapper.parameters_to_ignore
    }
    reduced = {key for wrapper in wrappers for key in reduced_parameters(wrapper)}
    return [p for p in parameters if id(p) in held and id(p) not in reduced]


def _build_reducer(given: DistributedDataParallel) -> None:
    """As ``DistributedDataParallel.__setstate__`` does it, with what that leaves out."""
    wrapper: Any = given
    hook_name = str(wrapper._get_ddp_logging_data().get("comm_hook", ""))
    parameters, sparse = wrapper._build_params_for_reducer()
    names = wrapper._build_debug_param_to_name_mapping(parameters)
    wrapper._ddp_init_helper(parameters, sparse, names, wrapper.static_graph)
    wrapper._has_rebuilt_buckets = False
    if wrapper.static_graph:
        # The first backward finds out what is used; until then nothing is reduced by itself.
        wrapper._static_graph_delay_allreduce_enqueued = False
        wrapper.reducer._set_static_graph()
        wrapper.logger._set_static_graph()
    if wrapper.mixed_precision is not None:
        wrapper.reducer._set_mixed_precision_param_dtype(wrapper.mixed_precision.param_dtype)
    if wrapper._use_python_reducer:
        for handle in wrapper._accum_grad_hooks:
            handle.remove()
        wrapper._accum_grad_hooks.clear()
        wrapper._register_accum_grad_hook()
    _register_hooks(wrapper, hook_name)


def _register_hooks(wrapper: Any, name: str) -> None:
    """Give the new reducer the communication hook that the old one had.

    Args:
        wrapper: the wrapper, which lists hooks that are written in Python.
        name: the hook's name; of torch's own in C++ there is no other trace.
    """
    own = getattr(_torch.BuiltinCommHookType, name.rpartition(".")[2] or "-", None)
    if wrapper._comm_hooks:
        for hook, state in wrapper._comm_hooks:
            _torch._register_comm_hook(wrapper.reducer, state, hook)
    elif own is not None:
        _torch._register_builtin_comm_hook(wrapper.reducer, own)
    if name:
        wrapper.logger._set_comm_hook_name(name)
