"""Which part of a piece of memory a tensor shows, and which part of one tensor another one shows.

A view is made without reading anything, so what is read of a tensor is told by the forms of the
views that reach a kernel, whatever chain of ``select``, ``slice`` or ``transpose`` made them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

Box = tuple[tuple[int, int], ...]
"""For each dimension of a tensor the first index of a part, and the one behind its last."""


class Window(NamedTuple):
    """The elements of its memory that a tensor shows.

    Attributes:
        offset: place of its first element.
        sizes: its shape.
        strides: its strides.
        dtype: as what it shows them.
    """

    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


def window_of(tensor: Tensor) -> Window | None:
    """The window that a tensor is; None if it is not plain strided memory.

    >>> window_of(torch.zeros(2, 3, 4)[:, 1])
    Window(offset=4, sizes=(2, 4), strides=(12, 1), dtype=torch.float32)
    """
    if tensor.layout != torch.strided or tensor.is_quantized:
        return None
    try:
        offset = int(tensor.storage_offset())
        return Window(offset, tuple(tensor.shape), tensor.stride(), tensor.dtype)
    except (NotImplementedError, RuntimeError):  # wrappers without memory of their own
        return None


def box_of(reads: Iterable[Window | None], whole: Window | None) -> Box | None:
    """The smallest box of a tensor's indices that holds all that is read of it.

    Args:
        reads: windows into the same memory.
        whole: the tensor.

    Returns:
        The box; None if it is not certain to be one, or if nothing is read.

    >>> x = torch.zeros(8, 37, 16)
    >>> box_of([window_of(x[:, 0]), window_of(x[:, 1:3].transpose(1, 2))], window_of(x))
    ((0, 8), (0, 3), (0, 16))
    >>> box_of([window_of(x.view(8, -1)[:, 5:])], window_of(x)) is None
    True
    """
    boxes = [None if read is None or whole is None else _box_in(read, whole) for read in reads]
    found = [box for box in boxes if box is not None]
    if not found or len(found) < len(boxes):
        return None
    return tuple(
        (min(first for first, _ in spans), max(end for _, end in spans))
        for spans in zip(*found, strict=True)
    )


def _box_in(read: Window, whole: Window) -> Box | None:
    sizes, strides = whole.sizes, whole.strides
    order = sorted((d for d, size in enumerate(sizes) if size > 1), key=lambda d: -strides[d])
    # Each element must have one index alone: no dimension reaches into the next.
    spans = [strides[d] * sizes[d] for d in order[1:]]
    if any(strides[d] < span for d, span in zip(order, spans, strict=False)):
        return None
    if read.dtype != whole.dtype or 0 in (*read.sizes, *sizes, *(strides[d] for d in order)):
        return None
    first, rest = [0] * len(sizes), read.offset - whole.offset
    for d in order:
        first[d], rest = divmod(rest, strides[d])
    last = list(first)
    for size, stride in zip(read.sizes, read.strides, strict=True):
        if size == 1 or stride == 0:
            continue
        along = next((d for d in order if strides[d] <= stride), None)
        if along is None or stride % strides[along]:
            return None
        last[along] += (size - 1) * (stride // strides[along])
    if rest or min(first, default=0) < 0 or any(map(int.__ge__, last, sizes)):
        return None
    return tuple((begin, end + 1) for begin, end in zip(first, last, strict=True))
