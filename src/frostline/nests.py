"""Tensors inside of other things: of mappings, lists and dataclasses, and of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of mappings, sequences, sets and dataclasses.

    What can be walked only once, such as a generator, is left for its owner.

    >>> len(list(tensors_in({"a": torch.ones(1), "b": [torch.ones(1), "text"]})))
    2
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for held in value.values():
            yield from tensors_in(held)
    elif isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        for held in value:
            yield from tensors_in(held)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def inner_tensors(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a sparse or a wrapping one is made of, labelled; none for any other.

    >>> [label for label, _ in inner_tensors(torch.eye(2).to_sparse())]
    ['indices', 'values']
    """
    if hasattr(type(tensor), "__tensor_flatten__"):  # DTensor, torchao, jagged, …
        # The context beside the names may hold requires_grad or addresses, so it is left out.
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        held = ((name, getattr(tensor, name)) for name in names)
        # A DTensor lists its mesh among them.
        yield from ((name, inner) for name, inner in held if isinstance(inner, Tensor))
    elif tensor.layout is torch.sparse_coo:
        yield from (("indices", tensor._indices()), ("values", tensor._values()))
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (("crow", tensor.crow_indices()), ("col", tensor.col_indices()))
        yield "values", tensor.values()
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (("ccol", tensor.ccol_indices()), ("row", tensor.row_indices()))
        yield "values", tensor.values()
