"""Which rows: slices, index lists and boolean masks, made into one sorted index."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, Union

import torch
from torch import Tensor

from frostline.errors import SelectorError

Rows: TypeAlias = Union[slice, int, Tensor, "Iterable[int]", "Iterable[bool]"]
"""How rows are named: a slice, an index, several of them, or a boolean mask."""


def row_index(rows: Rows, *, size: int, where: str) -> Tensor:
    """The rows as sorted, distinct, non-negative indices: an int64 tensor of shape (count,).

    Args:
        rows: what was asked for; negative indices count from the end, as everywhere in Python.
        size: number of rows that there are.
        where: the tensor's name and dimension, for errors.

    Raises:
        SelectorError: (a ValueError) the rows are empty, out of range, or of another kind.

    >>> row_index(slice(-2, None), size=5, where="w, dim 0").tolist()
    [3, 4]
    >>> row_index([True, False, True], size=3, where="w, dim 0").tolist()
    [0, 2]
    """
    if isinstance(rows, slice):
        index = torch.arange(size)[_forwards(rows, size, where)]
    else:
        index = _listed(rows, size, where)
    distinct: Tensor = index.unique()  # type: ignore[no-untyped-call]
    if not len(distinct):
        raise SelectorError(f"{where}: {_said(rows)} names no row of {size}")
    return distinct


def say_rows(index: Tensor) -> str:
    """Sorted indices as text: ranges as slices, at most four of them.

    >>> say_rows(torch.tensor([0, 1, 2, 7, 9, 10]))
    '0:3, 7, 9:11'
    """
    breaks = torch.nonzero(index.diff() > 1).flatten() + 1
    runs = [run.tolist() for run in torch.tensor_split(index.cpu(), breaks.cpu()[:4])]
    said = [f"{run[0]}:{run[-1] + 1}" if len(run) > 1 else str(run[0]) for run in runs[:4]]
    return ", ".join([*said, "…"] if len(breaks) > 3 else said)


def _forwards(rows: slice, size: int, where: str) -> slice:
    """The slice as increasing bounds; unlike in Python, bounds beyond the end are a mistake."""
    try:
        start, stop, step = rows.indices(size)
    except TypeError as error:
        raise SelectorError(f"{where}: {_said(rows)} is no slice of whole numbers") from error
    for bound in (rows.start, rows.stop):
        if bound is not None and not -size <= bound <= size:
            raise SelectorError(f"{where}: {_said(rows)} reaches beyond its {size} rows")
    if step < 0:
        taken = range(start, stop, step)
        start, stop, step = (taken[-1], taken[0] + 1, -step) if taken else (0, 0, 1)
    return slice(start, stop, step)


def _listed(rows: object, size: int, where: str) -> Tensor:
    try:
        given = rows if isinstance(rows, Tensor) else torch.tensor(_as_list(rows))
    except (TypeError, ValueError, RuntimeError) as error:
        raise SelectorError(
            f"{where}: cannot take rows from {_said(rows)}: give a slice, indices, or a mask"
        ) from error
    given = given.detach().cpu()
    if given.dtype == torch.bool:
        if given.shape != (size,):
            raise SelectorError(
                f"{where}: a mask needs one value a row, shape ({size},), got {tuple(given.shape)}"
            )
        return given.nonzero().flatten()
    if not given.numel():
        return given.new_empty(0, dtype=torch.int64)
    if given.is_floating_point() or given.is_complex() or given.ndim > 1:
        raise SelectorError(
            f"{where}: rows are a list of whole numbers or a mask, got {given.dtype} of shape"
            f" {tuple(given.shape)}"
        )
    given = given.to(torch.int64).reshape(-1)
    outside = given[(given < -size) | (given >= size)]
    if outside.numel():
        raise SelectorError(f"{where}: there is no row {int(outside[0])}; it has {size} rows")
    return torch.where(given < 0, given + size, given)


def _as_list(rows: object) -> object:
    return list(rows) if isinstance(rows, Iterable) and not isinstance(rows, str) else rows


def _said(rows: object) -> str:
    return f"{rows!r:.60}"
