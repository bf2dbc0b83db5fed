"""Marks of values in attributes, several levels deep: the same while nothing in them changes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import xxhash
from torch import Tensor, nn

from frostline.proof import fingerprint
from frostline.replay.versions import marks_of

PLAIN = (bool, int, float, complex, str, bytes, type(None))
FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
DEEPEST = 6
MOST_ITEMS = 4096
# What a model says of its head and its past, and what another head changes.
_NOT_OF_THE_FROZEN_PART = frozenset(
    {"id2label", "label2id", "problem_type", "architectures", "_name_or_path", "name_or_path"}
)


def deep_mark(value: Any, depth: int = 0) -> Any:
    """Something that is equal while a value, and what it holds, stays the same in this process.

    >>> held = {"a": {"k": 1}}
    >>> before = deep_mark(held)
    >>> held["a"]["k"] = 2
    >>> before == deep_mark(held)
    False
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        return id(value), *marks_of([value])
    if isinstance(value, np.ndarray):
        return id(value), xxhash.xxh3_64_intdigest(np.ascontiguousarray(value).tobytes())
    items = None if depth > DEEPEST else _items(value)
    if items is None:
        return id(value)
    return type(value).__name__, tuple((k, deep_mark(v, depth + 1)) for k, v in items)


def lasting_mark(value: Any, depth: int = 0) -> Any:
    """The same, and the same in every process: by content, where :func:`deep_mark` has addresses.

    >>> lasting_mark([1, {"a": 2.5}]) == lasting_mark([1, {"a": 2.5}])
    True
    """
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        return fingerprint(value)
    if isinstance(value, np.ndarray):
        content = xxhash.xxh3_64_intdigest(np.ascontiguousarray(value).tobytes())
        return str(value.dtype), value.shape, content
    if isinstance(value, FUNCTIONS):
        return value.__module__, value.__qualname__, _code_of(value, depth)
    items = None if depth > DEEPEST else _items(value)
    if items is None:
        return type(value).__module__, type(value).__qualname__
    return type(value).__name__, [
        (repr(key), lasting_mark(held, depth + 1))
        for key, held in items
        if key not in _NOT_OF_THE_FROZEN_PART
    ]


def _code_of(function: Any, depth: int) -> Any:
    """What a function does, as far as its code, constants, defaults and closure tell."""
    code = getattr(function, "__code__", None)
    if code is None or depth > DEEPEST:
        return None
    cells = [
        lasting_mark(cell.cell_contents, depth + 1)
        for cell in function.__closure__ or ()
        if cell != CellType()
    ]
    defaults = lasting_mark([function.__defaults__, function.__kwdefaults__], depth + 1)
    constants = [c if not isinstance(c, CodeType) else c.co_code for c in code.co_consts]
    return code.co_code, code.co_names, repr(constants), defaults, cells


def _items(value: Any) -> list[tuple[Any, Any]] | None:
    """What a container or a plain object holds; None for what is not looked into."""
    if isinstance(value, Mapping):
        return list(value.items())[:MOST_ITEMS]
    if isinstance(value, list | tuple):
        return list(enumerate(value[:MOST_ITEMS]))
    if isinstance(value, set | frozenset):
        return [(None, held) for held in sorted(value, key=repr)][:MOST_ITEMS]
    if isinstance(value, (nn.Module, type, *FUNCTIONS)):
        return None
    if isinstance(value, functools.partial):
        return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    held = dict(getattr(value, "__dict__", None) or {})
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                held[name] = getattr(value, name)
    return list(held.items())[:MOST_ITEMS] if held else None
