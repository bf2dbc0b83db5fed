"""Watch one forward pass and write it down as a :class:`~frostline.replay.graph.Graph`.

``requires_grad`` does not tell what is frozen: a detached trainable value looks frozen. So every
operation is watched, below autograd and inside all modules, by a dispatch mode. A function mode
is avoided on purpose: kernels are chosen by whether one is active (the fast path of
``nn.TransformerEncoder``), and what is traced has to be what will run.
"""

from __future__ import annotations

import pickle
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from frostline.proof.fingerprint import has_plain_content
from frostline.proof.surroundings import Surroundings, generator_state
from frostline.proof.traceless import same_bits
from frostline.replay.graph import Call, Escape, Graph, Operation, Place
from frostline.replay.hooks import foreign_hooks
from frostline.replay.layout import Layout
from frostline.replay.memory import Memory
from frostline.replay.nest import can_be_rebuilt, open_nest, rebuild
from frostline.replay.stand_in import Forward, StandIns, called_modules
from frostline.replay.tails import differs_at_the_end

_LEAVES_TENSORS = ("tolist", "numpy", "__array__", "__dlpack__")
_GROUPS_ROWS = frozenset({"_grouped_mm", "_scaled_grouped_mm", "histc", "bincount"})


def trace(
    model: nn.Module, name: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Graph:
    """Make one top-level call under observation.

    It runs for real: whoever wants no traces of it wraps it in ``no_traces``. Only what it writes
    into the model's own tensors is put back here.

    Args:
        model: the whole model.
        name: canonical name of the module that is called.
        forward: that module's forward, in the place of which the caller stands.
        args: what it is called with.
        kwargs: by keyword.
    """
    tracer = _Tracer(model)
    modules = called_modules(model)
    with StandIns(tracer.call) as stand_ins, _watched(tracer):
        stand_ins.cover(modules)
        tracer.top_level(name, modules[name], forward, args, kwargs)
    return tracer.graph


class _Tracer:
    """Fills a graph."""

    def __init__(self, model: nn.Module) -> None:
        self.graph = Graph()
        self.is_paused = False
        self._memory = Memory(model, self.graph)
        self._turns: Counter[str] = Counter()
        self._stack: list[int] = []
        every = Surroundings(model.modules()).generators
        # Those of torch are seen at the operations that draw from them.
        self._generators = [own for own in every if not isinstance(own, torch.Generator)]

    def top_level(
        self, name: str, module: nn.Module, forward: Forward, args: Any, kwargs: Any
    ) -> None:
        given = open_nest((args, kwargs), into_objects=True)
        self.graph.inputs = [self._memory.value_of(t, is_input=True) for t in given.tensors]
        start = time.perf_counter()
        output = self.call(name, module, forward, args, kwargs)
        self.graph.seconds = time.perf_counter() - start
        with self._paused():
            self.graph.writes_model = self._memory.restore()
        nest = open_nest(output)
        hidden = open_nest(nest.opaque, into_objects=True).tensors
        self.graph.results = [self._memory.value_of(tensor) for tensor in nest.tensors]
        self.graph.hidden = [self._memory.value_of(tensor) for tensor in hidden]

    def call(self, name: str, module: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Run one module's forward, and note what it took, gave and changed."""
        place = Place(name, self._turns[name])
        self._turns[name] += 1
        given = open_nest((args, kwargs)).tensors
        index = len(self.graph.calls)
        call = Call(
            place=place,
            module=module,
            parent=self._stack[-1] if self._stack else None,
            arguments=[self._memory.value_of(tensor) for tensor in given],
            first_operation=len(self.graph.operations),
            is_hooked=bool(foreign_hooks(module)),
            trains=any(parameter.requires_grad for parameter in module.parameters()),
        )
        self.graph.calls.append(call)
        with self._paused():
            buffers = {
                key: (buffer, buffer.detach().clone())
                for key, buffer in module._buffers.items()
                if buffer is not None
            }
        before = self._randomness()
        self._memory.enter()
        self._stack.append(index)
        start = time.perf_counter()
        try:
            output = forward(*args, **kwargs)
        finally:
            self._stack.pop()
            call.end = len(self.graph.calls)
            with self._paused():
                rewritten = self._memory.leave()
        call.seconds = time.perf_counter() - start
        nest = open_nest(output)
        call.results = [self._memory.value_of(tensor) for tensor in nest.tensors]
        call.handed = [_position(tensor, given) for tensor in nest.tensors]
        call.layouts = [Layout.of(t, samples=1, varies=False) for t in nest.tensors]
        with self._paused():
            moved = [
                key
                for key, (buffer, content) in buffers.items()
                if module._buffers.get(key) is not buffer or not same_bits(buffer, content)
            ]
            call.template = rebuild(output, [torch.empty(0) for _ in nest.tensors])
        if before != self._randomness():
            call.effect = "it draws random numbers of Python or NumPy"
        elif moved:
            call.effect = f"its buffer {moved[0]!r} changes as it runs"
        elif rewritten:
            call.effect = f"it rewrites the model's tensor {rewritten[0]!r} as it runs"
        if not all(has_plain_content(tensor) for tensor in nest.tensors):
            call.unfit = "it returns a sparse, quantised or wrapping tensor"
        elif not nest.tensors:
            call.unfit = "it returns no tensor"
        elif nest.opaque or not can_be_rebuilt(output):
            kind = type(nest.opaque[0] if nest.opaque else output).__name__
            call.unfit = f"it returns an object of class {kind}, which can't be made anew"
        return output

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """What the tracer does itself is no part of the pass."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    def _randomness(self) -> tuple[Any, ...]:
        return _python_randomness(self._generators)

    def before_operation(self, func: Any, args: Any, kwargs: Any) -> None:
        """What an operation is about to write is noted while it is still there."""
        for tensor in _written(func, args, kwargs):
            self._memory.about_to_write(tensor)

    def operation(self, func: Any, args: Any, kwargs: Any, result: Any, is_random: bool) -> None:
        """Note one operation that has run."""
        results = open_nest(result).tensors
        memory = self._memory
        name = func._schema.name.removeprefix("aten::")
        sources = open_nest((args, kwargs)).tensors
        written = _written(func, args, kwargs)
        is_fresh = name in ("lift_fresh", "lift_fresh_copy", "lift")
        reads = tuple(memory.value_of(tensor, is_constant=is_fresh) for tensor in sources)
        call = self._stack[-1] if self._stack else 0
        after = len(self.graph.operations)
        if not results and not written:
            self.graph.escapes.extend(Escape(call, value, name, after) for value in reads)
            return
        overwrites = tuple(memory.value_of(tensor) for tensor in written)
        writes = [memory.write(tensor) for tensor in written]
        # A view is what it views; only new memory is a new value.
        writes += [memory.write(tensor) for tensor in results if not memory.is_known(tensor)]
        if not reads and not is_random:
            self.graph.constant.update(writes)
        if writes or is_random:
            self.graph.operations.append(
                Operation(
                    call=call,
                    reads=reads,
                    writes=tuple(writes),
                    is_random=is_random,
                    mixes=_mixes(func, name, args),
                    is_uneven=differs_at_the_end(func, args, kwargs, result),
                    overwrites=overwrites,
                    name=name,
                )
            )

    def escape(self, tensor: Tensor, how: str) -> None:
        """Note a value that left for Python."""
        if self.is_paused:
            return
        call = self._stack[-1] if self._stack else 0
        value = self._memory.value_of(tensor)
        self.graph.escapes.append(Escape(call, value, how, len(self.graph.operations)))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows a tracer every operation."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._tracer.is_paused:
            return func(*args, **kwargs)
        # The tag also marks attention at dropout 0: only a generator that moved is randomness.
        may_draw = torch.Tag.nondeterministic_seeded in func.tags
        before = _torch_randomness((args, kwargs)) if may_draw else None
        self._tracer.before_operation(func, args, kwargs)
        result = func(*args, **kwargs)
        is_random = before is not None and not all(
            torch.equal(old, new)
            for old, new in zip(before, _torch_randomness((args, kwargs)), strict=True)
        )
        self._tracer.operation(func, args, kwargs, result, is_random)
        return result


@contextmanager
def _watched(tracer: _Tracer) -> Iterator[None]:
    """Show the tracer all operations, and all values that leave for Python."""
    originals = {name: getattr(Tensor, name) for name in _LEAVES_TENSORS}
    own = {name for name in _LEAVES_TENSORS if name in vars(Tensor)}

    def shown(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            tracer.escape(tensor, name)
            return original(tensor, *args, **kwargs)

        return method

    try:
        for name, original in originals.items():
            setattr(Tensor, name, shown(name, original))
        with _Operations(tracer):
            yield
    finally:
        for name, original in originals.items():
            if name in own:
                setattr(Tensor, name, original)
            else:
                delattr(Tensor, name)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an operation writes to."""
    if not func._schema.is_mutable:
        return []
    names = func._schema.arguments
    given = {**{a.name: value for a, value in zip(names, args, strict=False)}, **kwargs}
    return [
        tensor
        for a in names
        if a.alias_info is not None and a.alias_info.is_write
        for tensor in open_nest(given.get(a.name)).tensors
    ]


def _mixes(func: Any, name: str, args: Any) -> bool:
    if name == "index":  # by numbers it takes rows; by a mask their count depends on content
        return any(t.dtype in (torch.bool, torch.uint8) for t in open_nest(args[1]).tensors)
    return torch.Tag.dynamic_output_shape in func.tags or name in _GROUPS_ROWS


def _position(tensor: Tensor, given: list[Tensor]) -> int | None:
    for position, argument in enumerate(given):
        if argument is tensor:
            return position
    return None


def _python_randomness(own: list[Any]) -> tuple[Any, ...]:
    """The state of Python's and NumPy's generators, and of those that the model has."""
    numpy_state = np.random.get_state(legacy=False)
    where = numpy_state["state"]
    states = pickle.dumps([generator_state(generator) for generator in own]) if own else b""
    return random.getstate(), where["key"].tobytes(), where["pos"], numpy_state["gauss"], states


def _torch_randomness(given: Any) -> list[Tensor]:
    """The state of the generators that an operation on these arguments would draw from."""
    nest = open_nest(given)
    devices = {t.device for t in nest.tensors if t.device.type == "cuda"}
    own = [held.get_state() for held in nest.opaque if isinstance(held, torch.Generator)]
    cuda = [torch.cuda.get_rng_state(device) for device in devices]
    return [torch.get_rng_state(), *cuda, *own]
