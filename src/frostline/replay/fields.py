"""The fields of a batch: its leaves by name, put in anew, compared, and poisoned.

Mappings, lists, tuples and dataclasses are containers, nested in any way; all else is a leaf.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from typing import Any, TypeGuard

import numpy
import torch
from torch import Tensor

from frostline.errors import ReplayError
from frostline.proof.fingerprint import as_bytes, fingerprint, has_plain_content

_SCALARS = (type(None), bool, int, str, bytes, torch.dtype, torch.device, torch.layout)
_FLOATS = (float, complex)


def leaves(batch: Any) -> dict[str, Any]:
    """The leaves of a batch by path, in the batch's order; the path of a lone leaf is "".

    Raises:
        ReplayError: if two leaves have one path, as those of keys 1 and "1".

    >>> leaves({"image": 1.5, "boxes": [(2, None)]})
    {'image': 1.5, 'boxes.0.0': 2, 'boxes.0.1': None}
    """
    found: dict[str, Any] = {}

    def look(value: Any, path: str) -> None:
        held = parts(value)
        if held is not None:
            for key, part in held.items():
                look(part, joined(path, key))
        elif path in found:
            raise ReplayError(
                f"two fields of a batch are both named {path!r}, so they can't be told apart; "
                "give them different keys"
            )
        else:
            found[path] = value

    look(batch, "")
    return found


def rebuild(batch: Any, replace: Callable[[str, Any], Any], *, whole: Collection[str] = ()) -> Any:
    """The same containers, made anew, with other leaves.

    Classes, the order of keys and what a container holds beside its items are kept. No
    ``__post_init__`` runs.

    Args:
        batch: a batch; it is only read.
        replace: gives the new leaf from path and old leaf.
        whole: paths of containers that count as one leaf.

    Raises:
        ReplayError: if a container's class can't be made anew.

    >>> rebuild({"a": (1, [2])}, lambda path, leaf: (path, leaf * 10))
    {'a': (('a.0', 10), [('a.1.0', 20)])}
    """

    def built(value: Any, path: str) -> Any:
        held = None if path in whole else parts(value)
        if held is None:
            return replace(path, value)
        return _refilled(value, {key: built(part, joined(path, key)) for key, part in held.items()})

    return built(batch, "")


def parts(value: Any) -> dict[Any, Any] | None:
    """What a container holds, by key, position or field name; None for a leaf.

    >>> parts(("a", 2)), parts("a")
    ({0: 'a', 1: 2}, None)
    """
    if isinstance(value, Mapping):  # before dataclasses: a ModelOutput is both
        return dict(value.items())
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return None


def joined(path: str, key: object) -> str:
    """The path of what lies in a container.

    >>> joined("", "images"), joined("images", 0)
    ('images', 'images.0')
    """
    return f"{path}.{key}" if path else str(key)


def is_skipped(path: str, skipped: frozenset[str]) -> bool:
    """Whether a path or a container that it lies in is among the skipped ones.

    >>> is_skipped("boxes.3.area", frozenset({"boxes"})), is_skipped("boxes", frozenset({"box"}))
    (True, False)
    """
    return any(path == each or path.startswith(f"{each}.") for each in skipped) or "" in skipped


def same_value(one: Any, other: Any) -> bool:
    """Whether two leaves are bitwise the same, on whatever devices.

    Objects that are no tensors, arrays or plain values are the same only if they are one object.

    >>> import torch
    >>> same_value(torch.zeros(2), torch.zeros(2)), same_value(0.0, -0.0), same_value(1, True)
    (True, False, False)
    """
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if one.device == other.device and has_plain_content(one) and has_plain_content(other):
            return torch.equal(as_bytes(one), as_bytes(other))
        return fingerprint(one) == fingerprint(other)
    if isinstance(one, numpy.ndarray | numpy.generic):
        if one.dtype != other.dtype or one.shape != other.shape or one.dtype.hasobject:
            return False
        return one.tobytes() == bytes(other.tobytes())
    if isinstance(one, _FLOATS):
        return repr(one) == repr(other)  # NaN is itself, 0.0 is not -0.0
    return isinstance(one, _SCALARS) and bool(one == other)


def is_plain(leaf: Any) -> TypeGuard[Tensor | numpy.ndarray[Any, Any]]:
    """Whether a leaf is a tensor or an array whose content can be kept and given back.

    >>> import torch
    >>> is_plain(torch.ones(2)), is_plain(torch.ones(2).to_sparse()), is_plain(3)
    (True, False, False)
    """
    if isinstance(leaf, Tensor):
        return type(leaf) is Tensor and has_plain_content(leaf) and not leaf.requires_grad
    return type(leaf) is numpy.ndarray and not leaf.dtype.hasobject


def is_immutable(leaf: Any) -> bool:
    """Whether a leaf is a value that nobody can change: a number, text, None, a dtype.

    >>> is_immutable("text"), is_immutable({1, 2})
    (True, False)
    """
    return isinstance(leaf, (*_SCALARS, *_FLOATS, numpy.generic))


def can_be_poisoned(dtype: torch.dtype | numpy.dtype[Any]) -> bool:
    """Whether a dtype has a value that nobody takes for data.

    Floating and complex ones have NaN, signed integers their minimum. Booleans and unsigned
    integers have none: 0 is a fine pixel.

    >>> import torch
    >>> [can_be_poisoned(dtype) for dtype in (torch.bfloat16, torch.int64, torch.uint8)]
    [True, True, False]
    """
    if isinstance(dtype, torch.dtype):
        return dtype.is_floating_point or dtype.is_complex or dtype.is_signed
    return dtype.kind in "fci"


def poison(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A placeholder that fails loudly where it is used: NaN, or the smallest integer.

    An embedding, a cross entropy or an index raises on such an integer. It takes the memory of
    one element, so it can't be written to. Booleans are False and unsigned integers 0, which
    fail nowhere: see :func:`can_be_poisoned`.

    Args:
        shape: of the placeholder.
        dtype: of the placeholder.
        device: where it lies.

    >>> import torch
    >>> poison((2, 2), torch.float16)
    tensor([[nan, nan],
            [nan, nan]], dtype=torch.float16)
    """
    if dtype is torch.bool:
        value: float = False
    elif dtype.is_floating_point or dtype.is_complex:
        value = float("nan")
    else:
        value = torch.iinfo(dtype).min
    return torch.tensor(value, dtype=dtype, device=device).expand(*shape)


def _refilled(container: Any, held: Mapping[Any, Any]) -> Any:
    if isinstance(container, MutableMapping):
        filled = copy.copy(container)
        for key, part in held.items():
            filled[key] = part
        return filled
    if isinstance(container, tuple) and hasattr(container, "_make"):
        return container._make(held.values())
    if isinstance(container, Mapping | tuple | list):
        content = held if isinstance(container, Mapping) else held.values()
        try:
            return type(container)(content)  # type: ignore[call-arg]
        except TypeError as error:
            raise ReplayError(
                f"a batch holds a {type(container).__name__}, which can't be made anew from its "
                f"items ({error}); let the collate function give a dict, tuple or list instead"
            ) from error
    filled = copy.copy(container)
    for name, part in held.items():
        object.__setattr__(filled, name, part)  # frozen ones too, and fields with init=False
    return filled
