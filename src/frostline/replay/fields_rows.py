"""Rows of tensors and arrays as bytes, many samples in one piece of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy
import torch
from torch import Tensor

from frostline.proof.fingerprint import as_bytes
from frostline.replay.fields import poison

_FEWEST_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Placeholder:
    """What a poisoned leaf looks like.

    Attributes:
        shape: of the leaf.
        dtype: of the leaf; NumPy's for an array.
        device: where a tensor lies; None for an array.

    >>> Placeholder(shape=(2,), dtype=torch.float32, device=torch.device("cpu")).make()
    tensor([nan, nan])
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | numpy.dtype[Any]
    device: torch.device | None

    @classmethod
    def of(cls, leaf: Tensor | numpy.ndarray[Any, Any]) -> Placeholder:
        """The look of a leaf."""
        device = leaf.device if isinstance(leaf, Tensor) else None
        return cls(shape=tuple(leaf.shape), dtype=leaf.dtype, device=device)

    def make(self) -> Tensor | numpy.ndarray[Any, Any]:
        """The poisoned leaf; it takes the memory of one element."""
        if isinstance(self.dtype, torch.dtype):
            return poison(self.shape, self.dtype, self.device or "cpu")
        worst = numpy.iinfo(self.dtype).min if self.dtype.kind == "i" else numpy.nan
        one = numpy.array(worst, dtype=self.dtype)
        # Writable, unlike broadcast_to's: torch.from_numpy warns of any other.
        return numpy.lib.stride_tricks.as_strided(one, self.shape, (0,) * len(self.shape))


@dataclass(frozen=True, kw_only=True)
class RowForm:
    """What all rows of a field have in common.

    Attributes:
        row: shape, dtype and device of one row.
        order: the dimensions of the whole by falling stride: (0, 2, 3, 1) is channels last.
        skipped: whether only the look is kept.

    >>> form = RowForm.of(torch.arange(6.0).reshape(3, 2), skipped=False)
    >>> form.leaf(form.content(torch.arange(6.0).reshape(3, 2))[1:])
    tensor([[2., 3.],
            [4., 5.]])
    """

    row: Placeholder
    order: tuple[int, ...]
    skipped: bool

    @classmethod
    def of(cls, leaf: Tensor | numpy.ndarray[Any, Any], *, skipped: bool) -> RowForm:
        """The form of a leaf that has samples in its first dimension."""
        order = tuple(range(leaf.ndim))
        if isinstance(leaf, Tensor) and not leaf.is_contiguous():
            strides = leaf.stride()
            order = tuple(sorted(order, key=lambda dim: -strides[dim]))
        look = Placeholder.of(leaf)
        row = Placeholder(shape=look.shape[1:], dtype=look.dtype, device=look.device)
        return cls(row=row, order=order, skipped=skipped)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.row.shape) * self.row.dtype.itemsize

    def content(self, leaf: Tensor | numpy.ndarray[Any, Any]) -> Tensor:
        """A leaf's rows as uint8 [samples, row_bytes] on the CPU."""
        if isinstance(leaf, Tensor):
            return as_bytes(leaf).cpu().reshape(leaf.shape[0], self.row_bytes)
        flat = numpy.frombuffer(bytearray(leaf.tobytes()), dtype=numpy.uint8)
        return torch.from_numpy(flat).reshape(leaf.shape[0], self.row_bytes)

    def leaf(self, content: Tensor) -> Tensor | numpy.ndarray[Any, Any]:
        """The leaf with these rows, in memory of its own; the inverse of :meth:`content`."""
        shape = (content.shape[0], *self.row.shape)
        if not isinstance(self.row.dtype, torch.dtype):
            flat = numpy.frombuffer(content.numpy().tobytes(), dtype=self.row.dtype)
            return flat.reshape(shape).copy()
        values = content.reshape(-1).view(self.row.dtype).reshape(shape)
        if self.order != tuple(range(len(shape))):
            laid = torch.empty([shape[dim] for dim in self.order], dtype=values.dtype)
            back = sorted(range(len(shape)), key=lambda dim: self.order[dim])
            values = laid.permute(back).copy_(values)
        return values.to(self.row.device or "cpu")

    def placeholder(self, samples: int) -> Tensor | numpy.ndarray[Any, Any]:
        """A poisoned leaf for so many samples."""
        row = self.row
        shape = (samples, *row.shape)
        return Placeholder(shape=shape, dtype=row.dtype, device=row.device).make()


class Arena:
    """Rows of one size in memory that grows by doubling.

    >>> arena = Arena(2)
    >>> arena.write([0, 1], torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8))
    >>> arena.read([1, 0, 1]).tolist()
    [[3, 4], [1, 2], [3, 4]]
    """

    def __init__(self, row_bytes: int) -> None:
        self._content = torch.empty((0, row_bytes), dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken."""
        return self._content.numel()

    def write(self, rows: Sequence[int], content: Tensor) -> None:
        """Put uint8 [len(rows), row_bytes] where the row numbers say."""
        needed = max(rows, default=-1) + 1
        if needed > len(self._content):
            capacity = max(needed, 2 * len(self._content), _FEWEST_ROWS)
            grown = torch.empty((capacity, self._content.shape[1]), dtype=torch.uint8)
            grown[: len(self._content)] = self._content
            self._content = grown
        self._content[torch.tensor(rows, dtype=torch.int64)] = content

    def read(self, rows: Sequence[int]) -> Tensor:
        """A copy of rows: uint8 [len(rows), row_bytes]."""
        return self._content.index_select(0, torch.tensor(rows, dtype=torch.int64))
