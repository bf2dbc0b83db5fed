"""The state of objects, as bytes that are the same in every process."""

from __future__ import annotations

import copyreg
import functools
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy
import torch
import xxhash
from torch import Tensor
from torch.nn import Parameter

from frostline.proof.fingerprint import fingerprint

Feed = Callable[[bytes], object]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice)
_TORCH = torch.dtype | torch.device | torch.layout | torch.memory_format


class Unidentified(Exception):
    """Something has no content that could be told in another process."""


def feed_text(text: str, feed: Feed) -> None:
    """Feed a text with its length, so that "ab", "c" is not "a", "bc".

    >>> fed = bytearray()
    >>> feed_text("ab", fed.extend)
    >>> bytes(fed)
    b'2|ab'
    """
    encoded = text.encode("utf-8", "surrogateescape")
    feed(b"%d|" % len(encoded) + encoded)


def feed_state(value: Any, feed: Feed) -> None:
    """Feed all that a value consists of: content, attributes, and the code of its class.

    Tensors and arrays count by content; functions and classes by name and source file; objects
    by their class and what pickle would store of them.

    Args:
        value: plain values, tensors, arrays, and objects and containers of them.
        feed: takes the bytes, such as a hash's ``update``.

    Raises:
        Unidentified: for a lambda, a function or class made inside of another, code that was
            typed in, and whatever can't be pickled.

    >>> one, other = bytearray(), bytearray()
    >>> feed_state({"mean": [0.5, 0.5]}, one.extend)
    >>> feed_state({"mean": [0.5, 0.6]}, other.extend)
    >>> one == other
    False
    """
    _State(feed).add(value)


class _State:
    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._open: list[int] = []

    def add(self, value: Any) -> None:
        if _is_plain(value):
            feed_text(f"{type(value).__name__} {value!r}", self._feed)
        elif isinstance(value, Enum):
            feed_text(f"{type(value).__qualname__}.{value.name}", self._feed)
        elif isinstance(value, PurePath | _TORCH):
            feed_text(f"{type(value).__name__} {value}", self._feed)
        elif type(value) in (Tensor, Parameter):
            feed_text(f"tensor {fingerprint(value)}", self._feed)
        elif isinstance(value, numpy.ndarray | numpy.generic):
            self._add_array(numpy.asarray(value))
        elif isinstance(value, type | FunctionType | BuiltinFunctionType):
            feed_text(_code(value), self._feed)
        elif id(value) in self._open:  # it holds itself: by how far up it is
            feed_text(f"up {len(self._open) - self._open.index(id(value))}", self._feed)
        else:
            self._open.append(id(value))
            self._add_container(value)
            self._open.pop()

    def _add_array(self, array: numpy.ndarray[Any, Any]) -> None:
        if array.dtype.hasobject:
            raise Unidentified
        content = xxhash.xxh3_128_hexdigest(array.tobytes())
        feed_text(f"array {array.dtype.descr} {array.shape} {content}", self._feed)

    def _add_container(self, value: Any) -> None:
        items = _items(value)
        feed_text(f"{_code(type(value))} {len(items)}", self._feed)
        for item in items:
            self.add(item)


def _is_plain(value: Any, levels: int = 2) -> bool:
    """Whether its repr says all: an image folder's list of a million files is told at once."""
    kind = type(value)
    if kind in (list, tuple):
        return levels > 0 and all(_is_plain(item, levels - 1) for item in value)
    return kind in _PLAIN


def _items(value: Any) -> list[Any]:
    """What an object consists of beside its class: what pickle would store of it."""
    if type(value) is dict:
        return [part for item in value.items() for part in item]
    if type(value) in (list, tuple):
        return list(value)
    if type(value) in (set, frozenset):
        return sorted(value, key=repr)
    try:
        reduce: Callable[[Any], Any] = copyreg.dispatch_table.get(type(value), _reduced)
        reduced = reduce(value)
    except Exception as error:  # whatever a class raises that can't be pickled
        raise Unidentified from error
    if isinstance(reduced, str):
        return [reduced]
    made_by, arguments, state, items, pairs = (*reduced, *(None,) * 5)[:5]
    return [made_by, arguments, state, list(items or ()), list(pairs or ())]


def _reduced(value: Any) -> Any:
    return value.__reduce_ex__(4)


def _code(code: Any) -> str:
    """A class or a function that can be imported: its name, and the files it is written in."""
    found: Any = sys.modules.get(code.__module__ or "")
    for name in code.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is not code:
        raise Unidentified
    written = code.__mro__ if isinstance(code, type) else (code,)
    files = ",".join(_file(each.__module__) for each in written)
    return f"{code.__module__}.{code.__qualname__} {files}"


@functools.lru_cache(maxsize=4096)
def _file(module: str) -> str:
    """A hash of a module's file; of one that is built in, Python's version."""
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is not None:
        return xxhash.xxh3_128_hexdigest(Path(path).read_bytes())
    if module in sys.builtin_module_names:
        return sys.version
    raise Unidentified  # typed in, or made by exec
