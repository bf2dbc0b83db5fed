"""What a model's modules hold, and their code reaches: configurations, lists, collectors, globals.

A forward hook that appends to a list of its maker, or a ``forward`` that counts in a global
variable, leaves traces outside of the model. They are found by looking at the code's closure and
at the global names that it mentions, one level deep.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from random import Random
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Exactly these: a subclass may do what it likes when it is copied or filled.
_CONTAINERS = (dict, list, set, deque, OrderedDict, defaultdict, Counter)
GENERATORS = (torch.Generator, Random, np.random.Generator, np.random.RandomState)
_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_NO_STATE = (
    nn.Module, Tensor, ModuleType, FunctionType, MethodType, BuiltinFunctionType, type, property,
)  # fmt: skip
_LIBRARIES = ("torch.", "numpy.", "builtins.", "typing.", "collections.")


class Surroundings:
    """What some modules hold, and their hooks and forwards reach, as it is now.

    >>> seen = []
    >>> layer = nn.Identity()
    >>> handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    >>> before = Surroundings([layer])
    >>> _ = layer(1)
    >>> before.restore()
    >>> seen
    []
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._generators: list[tuple[Any, Any]] = []
        self._cells: list[tuple[CellType, Any]] = []
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._seen: set[int] = set()
        for module in modules:
            for value in vars(module).values():
                self._keep(value)
            for function in _functions_of(module):
                self._look_into(function)

    @property
    def generators(self) -> list[Any]:
        """Random generators of their own, of torch, Python and NumPy."""
        return [generator for generator, _ in self._generators]

    def plain_values(self) -> list[tuple[str, Any]]:
        """Plain values in closures and global variables, by name, as they are by now."""
        cells = [("a closure's value", _content(cell)) for cell, _ in self._cells]
        names = [(name, held.get(name)) for held, name, _ in self._globals]
        return [(name, v) for name, v in cells + names if isinstance(v, _SCALARS)]

    def restore(self) -> None:
        """Put all of it back."""
        for container, content in self._containers.values():
            _refill(container, content)
        for generator, state in self._generators:
            _set_generator(generator, state)
        for cell, value in self._cells:
            cell.cell_contents = value
        for names, name, value in self._globals:
            names[name] = value

    def _look_into(self, function: Any) -> None:
        if id(function) in self._seen:
            return
        self._seen.add(id(function))
        if isinstance(function, functools.partial):
            self._look_into(function.func)
            for argument in (*function.args, *function.keywords.values()):
                self._keep(argument)
        elif isinstance(function, MethodType):
            self._keep(function.__self__)
            self._look_into(function.__func__)
        elif isinstance(function, FunctionType):
            self._look_into_code(function)
        elif callable(function):
            self._keep(function)

    def _look_into_code(self, function: FunctionType) -> None:
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            if isinstance(value, _SCALARS):
                self._cells.append((cell, value))
            elif isinstance(value, FunctionType | MethodType):
                self._look_into(value)  # what a decorator wraps
            else:
                self._keep(value)
        if f"{function.__module__}.".startswith(_LIBRARIES):
            return
        names = function.__globals__
        for name in _names_in(function.__code__):
            if name not in names:
                continue
            value = names[name]
            if isinstance(value, _SCALARS):
                self._globals.append((names, name, value))
            else:
                self._keep(value)

    def _keep(self, value: Any) -> None:
        # Exact types first: modules have dozens of attributes, and isinstance asks metaclasses.
        if type(value) in _SCALARS:
            return
        if type(value) in _CONTAINERS:
            if id(value) not in self._containers:
                self._containers[id(value)] = (value, value.copy())
            return
        if isinstance(value, GENERATORS):
            self._generators.append((value, generator_state(value)))
            return
        if isinstance(value, (*_NO_STATE, *_SCALARS)):
            return
        held = getattr(value, "__dict__", None)
        if isinstance(held, dict) and not f"{type(value).__module__}.".startswith(_LIBRARIES):
            self._containers.setdefault(id(held), (held, held.copy()))
            for inner in held.values():
                if type(inner) in _CONTAINERS:
                    self._containers.setdefault(id(inner), (inner, inner.copy()))


def generator_state(generator: Any) -> Any:
    """The state of one of :data:`GENERATORS`; equal states compare equal as bytes."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.getstate() if isinstance(generator, Random) else generator.get_state()


def _set_generator(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # emptied since
        return None


def _refill(container: Any, content: Any) -> None:
    """Give a container the content of its copy, if it has another."""
    if not container and not content:
        return
    if len(container) == len(content) and all(
        one is other for one, other in zip(_parts(container), _parts(content), strict=True)
    ):
        return
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        (container.extend if isinstance(container, deque) else container.update)(content)


def _parts(container: Any) -> Iterator[Any]:
    if isinstance(container, dict):
        for key, value in container.items():
            yield from (key, value)
    else:
        yield from container


def _functions_of(module: nn.Module) -> Iterator[Any]:
    yield type(module).forward
    for table in (module._forward_hooks, module._forward_pre_hooks):
        yield from table.values()


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
