"""What values hold, several levels deep, looked at before every pass: so by identity, and in C."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
from torch import Tensor, nn

from frostline.replay.deep import DEEPEST, FUNCTIONS, MOST_ITEMS, PLAIN, deep_mark
from frostline.replay.versions import marks_of


class Contents:
    """Tells whether values, and what they hold, are the same objects as when it was made.

    It sees what :func:`~frostline.replay.deep.deep_mark` sees, and more: an equal object in
    another's place. Plain objects, dicts, lists and tensors are compared here; for what is rare,
    marks are.

    Args:
        values: what to look into.

    >>> held = {"a": [1, {"k": 1}]}
    >>> contents = Contents([held])
    >>> contents.are_as_before()
    True
    >>> held["a"][1]["k"] = 2
    >>> contents.are_as_before()
    False
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self._objects: list[Any] = []
        self._dicts: list[dict[Any, Any]] = []
        self._lists: list[list[Any]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._tensors: list[Tensor] = []
        self._marked: list[tuple[Any, Any]] = []
        self._collect(values)
        self._object_dicts = list(map(vars, self._objects))
        self._classes = list(map(type, self._objects))
        self._sizes = self._count()
        self._keys = list(chain.from_iterable(self._dicts))
        self._items = list(self._held())
        self._versions = marks_of(self._tensors)

    def are_as_before(self) -> bool:
        """Whether nothing has changed."""
        return (
            self._count() == self._sizes
            and list(chain.from_iterable(self._dicts)) == self._keys
            and all(map(operator.is_, self._held(), self._items))
            and list(map(type, self._objects)) == self._classes
            and all(map(operator.is_, map(vars, self._objects), self._object_dicts))
            and marks_of(self._tensors) == self._versions
            and all(held == copy for held, copy in self._sets)
            and all(deep_mark(value) == mark for value, mark in self._marked)
        )

    def _count(self) -> list[int]:
        return list(map(len, chain(self._dicts, self._lists)))

    def _held(self) -> chain[Any]:
        values = map(dict.values, self._dicts)
        return chain(chain.from_iterable(values), chain.from_iterable(self._lists))

    def _collect(self, values: Iterable[Any]) -> None:
        # Breadth first, so that each is met where it lies least deep.
        waiting = deque((value, 0) for value in values)
        seen: set[int] = set()
        while waiting:
            value, depth = waiting.popleft()
            if not isinstance(value, PLAIN) and id(value) not in seen:
                seen.add(id(value))
                held = self._look_into(value, depth)
                waiting.extend((part, depth + 1) for part in islice(held, MOST_ITEMS))

    def _look_into(self, value: Any, depth: int) -> Iterable[Any]:
        """Take note of one value; what it holds that is to be looked into, too."""
        kind = type(value)
        if isinstance(value, Tensor):
            self._tensors.append(value)
        elif depth > DEEPEST or isinstance(value, (nn.Module, type, *FUNCTIONS)):
            pass  # not looked into: it is known by its place in what holds it
        elif kind in (tuple, frozenset):
            return list(value)
        elif kind is dict and _has_plain_keys(value):
            self._dicts.append(value)
            return list(value.values())
        elif kind is list and len(value) <= MOST_ITEMS:
            self._lists.append(value)
            return list(value)
        elif kind is set and all(isinstance(part, PLAIN) for part in value):
            self._sets.append((value, value.copy()))
        elif _is_plain_object(value):
            self._objects.append(value)
            self._dicts.append(vars(value))
            return list(vars(value).values())
        else:
            self._marked.append((value, deep_mark(value)))
        return ()


def _has_plain_keys(value: dict[Any, Any]) -> bool:
    return len(value) <= MOST_ITEMS and all(isinstance(key, PLAIN) for key in value)


def _is_plain_object(value: Any) -> bool:
    """Whether all that an object holds is in its ``__dict__``."""
    if isinstance(value, np.ndarray | Mapping | list | tuple | set | frozenset | partial):
        return False
    held = getattr(value, "__dict__", None)
    if type(held) is not dict or not _has_plain_keys(held):
        return False
    return not any(vars(kind).get("__slots__") for kind in type(value).__mro__)
