"""Digests of the code that a module's class runs: who edits it must not find what the old one gave.

Functions outside of the class are not followed; what they change is found when the first batch of
a run is held against the record.
"""

from __future__ import annotations

import functools
import inspect
from types import CodeType, FunctionType
from typing import Any

import xxhash
from torch import nn

_OF_TORCH = "torch."  # its version is a part of the key anyhow


def code_mark(module: nn.Module) -> str:
    """A digest of all methods of a module's class and its bases; the same in every process.

    >>> class Double(nn.Module):
    ...     def forward(self, x):
    ...         return 2 * x
    >>> before = code_mark(Double())
    >>> Double.forward = lambda self, x: 3 * x
    >>> before == code_mark(Double())
    False
    """
    kinds = [k for k in type(module).__mro__ if not f"{k.__module__}.".startswith(_OF_TORCH)]
    functions = [
        (name, value)
        for kind in kinds
        for name, value in vars(kind).items()
        if isinstance(value, FunctionType)
    ]
    return _digest(tuple(functions))


@functools.lru_cache(maxsize=1024)
def _digest(functions: tuple[tuple[str, FunctionType], ...]) -> str:
    marks = [(name, _mark(inspect.unwrap(function).__code__)) for name, function in functions]
    return xxhash.xxh3_128_hexdigest(repr(marks).encode())


def _mark(code: CodeType) -> Any:
    return code.co_code, code.co_names, [_constant(value) for value in code.co_consts]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _mark(value)
    if isinstance(value, frozenset):
        return sorted(map(repr, value))  # their order is another in each process
    return repr(value)
