"""Tensors inside what modules take and return: taken out in a fixed order, and put back.

Tuples, lists, mappings and dataclasses (``ModelOutput`` among them) are containers. Any other
object is *opaque*: its tensors can be found, in its attributes, but it can't be built anew.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CONSTANTS = (
    type(None), bool, int, float, complex, str, bytes, range, slice, Enum,
    torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout,
)  # fmt: skip
_NOT_ENTERED = (nn.Module, FunctionType, MethodType, ModuleType, type, torch.Generator)
_DEEPEST = 12
_USUAL = frozenset({tuple, list, dict})


class Nest(NamedTuple):
    """What a structure holds.

    Attributes:
        tensors: its tensors, in a fixed order.
        form: all the rest as one hashable value: containers, keys, constants, objects' classes.
        opaque: objects that can't be built anew.
    """

    tensors: list[Tensor]
    form: tuple[Any, ...]
    opaque: list[object]


def open_nest(value: Any, *, into_objects: bool = False) -> Nest:
    """Take a structure apart.

    Args:
        value: any structure.
        into_objects: whether tensors in the attributes of opaque objects count.

    >>> import torch
    >>> nest = open_nest({"a": (torch.ones(2), None), "b": 3})
    >>> len(nest.tensors), nest.form == open_nest({"a": (torch.zeros(5), None), "b": 3}).form
    (1, True)
    """
    tensors: list[Tensor] = []
    opaque: list[object] = []
    seen: set[int] = set()

    def form_of(value: Any, depth: int) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            return "tensor"
        if type(value) in _USUAL and depth <= _DEEPEST:
            items: Iterable[tuple[Any, Any]] | None = _usual_items(value)
        elif isinstance(value, CONSTANTS):
            return type(value).__name__, repr(value)
        elif isinstance(value, _NOT_ENTERED) or id(value) in seen or depth > _DEEPEST:
            opaque.append(value)
            return "object", _name_of(value)
        else:
            items = _items(value)
        if items is None:
            opaque.append(value)
            if not into_objects:
                return "object", _name_of(value)
            seen.add(id(value))
            items = getattr(value, "__dict__", {}).items()
        inside = [(repr(key), form_of(held, depth + 1)) for key, held in items]
        return _name_of(value), tuple(inside)

    form = form_of(value, 0)
    return Nest(tensors, (form,), opaque)


def holds_plain_values(nest: Nest) -> bool:
    """Whether a structure holds anything beside tensors and None.

    >>> import torch
    >>> holds_plain_values(open_nest((torch.ones(2), None))), holds_plain_values(open_nest([True]))
    (False, True)
    """

    def is_there(form: Any) -> bool:
        if form == "tensor":
            return False
        kind, inside = form
        if isinstance(inside, str):
            return bool(kind != "NoneType")
        return any(is_there(held) for _, held in inside)

    return is_there(nest.form[0])


def rebuild(value: Any, tensors: Iterable[Any], objects: Callable[[Any], Any] | None = None) -> Any:
    """The same structure with other tensors, in the order of :func:`open_nest`.

    Args:
        value: the structure.
        tensors: what takes the tensors' places.
        objects: what takes the place of each opaque object; None leaves them.

    >>> import torch
    >>> rebuild({"a": (torch.ones(2), None)}, ["new"])
    {'a': ('new', None)}
    """
    remaining = iter(tensors)

    def built(value: Any) -> Any:
        if isinstance(value, Tensor):
            return next(remaining)
        if isinstance(value, CONSTANTS):
            return value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return _with_fields(value, built)
        if isinstance(value, tuple):
            items = [built(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, list):
            return type(value)(built(item) for item in value)
        if isinstance(value, Mapping):
            filled = copy.copy(value)
            for key, item in value.items():
                filled[key] = built(item)  # type: ignore[index]
            return filled
        return value if objects is None else objects(value)

    return built(value)


def can_be_rebuilt(value: Any) -> bool:
    """Whether :func:`rebuild` gives an equal structure; some classes refuse to be made anew."""
    nest = open_nest(value)
    if nest.opaque:
        return False
    try:
        again = open_nest(rebuild(value, nest.tensors))
    except Exception:
        return False
    return again.form == nest.form and all(
        a is b for a, b in zip(again.tensors, nest.tensors, strict=True)
    )


def _with_fields(value: Any, change: Callable[[Any], Any]) -> Any:
    filled = _copy(value)
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        # ModelOutput is a dict as well, and a None in it is no key.
        if held is not None:
            object.__setattr__(filled, field.name, change(held))
            if isinstance(value, dict) and field.name in value:
                dict.__setitem__(filled, field.name, getattr(filled, field.name))
    return filled


def _copy(value: Any) -> Any:
    """A shallow copy; much faster than the general way for what models return."""
    if not isinstance(value, dict) or not hasattr(value, "__dict__"):
        return copy.copy(value)
    filled = type(value).__new__(type(value))
    filled.__dict__.update(value.__dict__)
    # Past __setitem__ of its own; an OrderedDict keeps its order elsewhere than a dict.
    put = OrderedDict.__setitem__ if isinstance(value, OrderedDict) else dict.__setitem__
    for key, held in value.items():
        put(filled, key, held)
    return filled


def _usual_items(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if type(value) is dict else enumerate(value)


def _items(value: Any) -> Iterable[tuple[Any, Any]] | None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [
            (field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)
        ]
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, tuple | list):
        return enumerate(value)
    return None


def _name_of(value: Any) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
