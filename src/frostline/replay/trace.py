"""Watch one forward pass and write it down as a :class:`~frostline.replay.graph.Graph`.

``requires_grad`` does not tell what is frozen: a detached trainable value looks frozen. So every
operation is watched, below autograd and inside all modules, by a dispatch mode. A function mode
is avoided on purpose: kernels are chosen by whether one is active (the fast path of
``nn.TransformerEncoder``), and what is traced has to be what will run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from frostline.proof.fingerprint import has_plain_content
from frostline.proof.surroundings import Surroundings
from frostline.proof.traceless import same_bits
from frostline.replay.captured import Captured
from frostline.replay.compiled import called_modules, is_compiled, run_as_one, uncompiled
from frostline.replay.graph import FROM_OUTSIDE, Call, Escape, Graph, Operation, Place
from frostline.replay.hooks import foreign_hooks
from frostline.replay.layout import Layout
from frostline.replay.memory import Memory
from frostline.replay.nest import can_be_rebuilt, holds_plain_values, open_nest, rebuild
from frostline.replay.randomness import may_draw_in_python, python_randomness, torch_randomness
from frostline.replay.slots import OF_EVERY_MODULE
from frostline.replay.stand_in import Forward, StandIns
from frostline.replay.tails import differs_at_the_end
from frostline.replay.watch import look
from frostline.replay.windows import window_of

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
    before = look(model)
    with StandIns(tracer.call) as stand_ins, uncompiled(model), _watched(tracer):
        stand_ins.cover(modules)
        tracer.top_level(name, modules[name], forward, args, kwargs)
    changes_attributes = look(model) != before
    if changes_attributes:
        tracer.find_left(model)
    if changes_attributes or any(map(is_compiled, modules.values())):
        # It leaves something in the model that a pass with what was captured would not leave, or
        # what was captured need not have the bits of what is compiled.
        tracer.graph.captured = None
    return tracer.graph


class _Tracer:
    """Fills a graph."""

    def __init__(self, model: nn.Module) -> None:
        self.captured = Captured()
        self.graph = Graph(captured=self.captured)
        self.is_paused = False
        self._memory = Memory(model, self.graph)
        self._training = _training_modules(model)
        self._turns: Counter[str] = Counter()
        self._stack: list[int] = []
        # torch's class carries no types.
        self._returned: Any = WeakIdKeyDictionary()
        every = Surroundings(filter(may_draw_in_python, model.modules())).generators
        # Those of torch are seen at the operations that draw from them.
        self._generators = [own for own in every if not isinstance(own, torch.Generator)]

    def top_level(
        self, name: str, module: nn.Module, forward: Forward, args: Any, kwargs: Any
    ) -> None:
        given = open_nest((args, kwargs), into_objects=True)
        self.graph.inputs = [self._memory.value_of(t, is_input=True) for t in given.tensors]
        for position, tensor in enumerate(given.tensors):
            self._returned[tensor] = ((FROM_OUTSIDE, position),)
        start = time.perf_counter()
        output = self.call(name, module, forward, args, kwargs)
        self.graph.seconds = time.perf_counter() - start
        with self._paused():
            self.graph.writes_model = self._memory.restore()
            self.captured.end(output)
        nest = open_nest(output)
        hidden = open_nest(nest.opaque, into_objects=True).tensors
        self.graph.returns_floats = any(t.is_floating_point() for t in (*nest.tensors, *hidden))
        self.graph.results = [self._memory.value_of(tensor) for tensor in nest.tensors]
        self.graph.hidden = [self._memory.value_of(tensor) for tensor in hidden]
        self.graph.has_own_backward = _has_own_backward(nest.tensors)

    def find_left(self, model: nn.Module) -> None:
        """Note what is in the modules' attributes now."""
        attributes = [
            value
            for module in model.modules()
            for name, value in vars(module).items()
            if name not in OF_EVERY_MODULE
        ]
        tensors = open_nest(attributes, into_objects=True).tensors
        self.graph.left = {self._memory.value_of(t) for t in tensors if self._memory.is_known(t)}

    def call(self, name: str, module: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Run one module's forward, and note what it took, gave and changed."""
        place = Place(name, self._turns[name])
        self._turns[name] += 1
        nested = open_nest((args, kwargs))
        given = nested.tensors
        index = len(self.graph.calls)
        call = Call(
            place=place,
            module=module,
            parent=self._stack[-1] if self._stack else None,
            arguments=[self._memory.value_of(tensor) for tensor in given],
            returned_by=[self._returned.get(tensor, ()) for tensor in given],
            takes_plain=holds_plain_values(nested),
            first_operation=len(self.graph.operations),
            is_hooked=any(map(foreign_hooks, run_as_one(module))),
            is_compiled=is_compiled(module),
            trains=id(module) in self._training,
        )
        self.graph.calls.append(call)
        buffers = self._buffers_of(module)
        watches_python = any(map(may_draw_in_python, run_as_one(module)))
        before = python_randomness(self._generators) if watches_python else ()
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
        for position, tensor in enumerate(nest.tensors):
            before_it = self._returned.get(tensor, ())
            self._returned[tensor] = (*before_it, (index, position))
        call.layouts = [Layout.of(t, samples=1, varies=False) for t in nest.tensors]
        call.windows = [window_of(tensor) for tensor in nest.tensors]
        with self._paused():
            moved = [
                key
                for (owner, key), (buffer, content) in buffers.items()
                if owner._buffers.get(key) is not buffer or not same_bits(buffer, content)
            ]
            call.template = rebuild(output, [torch.empty(0) for _ in nest.tensors])
        if watches_python and before != python_randomness(self._generators):
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
        if not (call.trains or call.effect or call.unfit):
            self.captured.add(index, nest.tensors)
        return output

    def _buffers_of(self, module: nn.Module) -> dict[tuple[nn.Module, str], tuple[Tensor, Tensor]]:
        """The buffers of a module, without those of modules called inside, with their content."""
        owners = [owner for owner in run_as_one(module) if owner._buffers]
        if not owners:
            return {}
        with self._paused():
            return {
                (owner, key): (buffer, buffer.detach().clone())
                for owner in owners
                for key, buffer in owner._buffers.items()
                if buffer is not None
            }

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """What the tracer does itself is no part of the pass."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    def operation(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Make one operation, and note it."""
        memory = self._memory
        sources = _tensors((*args, *kwargs.values()))
        written = _written(func, args, kwargs)
        for tensor in written:
            memory.about_to_write(tensor)
        # The tag also marks attention at dropout 0: only a generator that moved is randomness.
        may_draw = torch.Tag.nondeterministic_seeded in func.tags
        before = torch_randomness(sources, [*args, *kwargs.values()]) if may_draw else []
        result = func(*args, **kwargs)
        is_random = may_draw and not all(
            map(torch.equal, before, torch_randomness(sources, [*args, *kwargs.values()]))
        )
        self._note(func, args, kwargs, result, sources, written, is_random=is_random)
        return result

    def _note(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        sources: list[Tensor],
        written: list[Tensor],
        *,
        is_random: bool,
    ) -> None:
        memory = self._memory
        results = _tensors((result,))
        name = func._schema.name.removeprefix("aten::")
        is_fresh = name in ("lift_fresh", "lift_fresh_copy", "lift")
        reads = tuple(memory.value_of(tensor, is_constant=is_fresh) for tensor in sources)
        call = self._stack[-1] if self._stack else 0
        after = len(self.graph.operations)
        if not results and not written:
            self.graph.escapes.extend(
                Escape(call, value, name, after, tensor.dtype == torch.bool and tensor.numel() == 1)
                for value, tensor in zip(reads, sources, strict=True)
            )
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
                    windows=tuple(map(window_of, sources)),
                )
            )
        else:
            self.graph.viewed.setdefault(call, set()).update(reads)

    def escape(self, tensor: Tensor, how: str) -> None:
        """Note a value that left for Python."""
        if self.is_paused:
            return
        call = self._stack[-1] if self._stack else 0
        value = self._memory.value_of(tensor)
        after = len(self.graph.operations)
        self.graph.escapes.append(Escape(call, value, how, after, is_flag=False))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows a tracer every operation."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._tracer.is_paused:
            return func(*args, **kwargs)
        return self._tracer.operation(func, args, kwargs)


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


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operation's arguments or results, lists entered."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _training_modules(model: nn.Module) -> set[int]:
    """``id`` of each module in which, or below which, a tensor is trainable."""
    around: dict[int, list[int]] = {}
    waiting: list[int] = []
    for module in model.modules():
        for child in module.children():
            around.setdefault(id(child), []).append(id(module))
        if any(p is not None and p.requires_grad for p in module._parameters.values()):
            waiting.append(id(module))
    found: set[int] = set()
    while waiting:
        module_id = waiting.pop()
        if module_id not in found:
            found.add(module_id)
            waiting += around.get(module_id, ())
    return found


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
        for tensor in _tensors((given.get(a.name),))
    ]


def _mixes(func: Any, name: str, args: Any) -> bool:
    if name == "index":  # by numbers it takes rows; by a mask their count depends on content
        return any(t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1:2]))
    return torch.Tag.dynamic_output_shape in func.tags or name in _GROUPS_ROWS


def _has_own_backward(tensors: Iterable[Tensor]) -> bool:
    """Whether a ``torch.autograd.Function`` of somebody's is on the way back from these."""
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, BackwardCFunction):
            return True
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return False


def _position(tensor: Tensor, given: list[Tensor]) -> int | None:
    for position, argument in enumerate(given):
        if argument is tensor:
            return position
    return None
