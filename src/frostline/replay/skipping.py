"""Which fields of a batch need not be loaded, since only recorded computation would use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from frostline.proof.traceless import same_bits
from frostline.replay.fields import leaves
from frostline.replay.nest import open_nest
from frostline.replay.runner import TopLevel


class Fields:
    """A batch's fields, as the top-level call of a pass gets them.

    Args:
        batch: what the loader yielded; None in a pass without a loader.
        is_poisoned: whether fields were left out.
        load: gives the batch with all fields.
    """

    def __init__(
        self,
        batch: Any = None,
        *,
        is_poisoned: bool = False,
        load: Callable[[], Any] | None = None,
    ) -> None:
        self._leaves: dict[str, Any] = {} if batch is None else leaves(batch)
        self._load = load
        self.is_poisoned = is_poisoned

    def paths_of(self, call: TopLevel) -> dict[int, str]:
        """Which of a call's tensor arguments is which field; by content, so devices may differ."""
        fields = {p: leaf for p, leaf in self._leaves.items() if isinstance(leaf, Tensor)}
        found: dict[int, str] = {}
        given = open_nest((call.args, call.kwargs), into_objects=True).tensors
        for position, tensor in enumerate(given):
            for path, leaf in fields.items():
                if path not in found.values() and _is_the_same(tensor, leaf):
                    found[position] = path
                    break
        return found

    def with_content(self, call: TopLevel, paths: dict[int, str]) -> TopLevel:
        """The same call with the fields that were left out loaded after all."""
        assert self._load is not None
        true = leaves(self._load())
        tensors = open_nest((call.args, call.kwargs)).tensors
        for position, path in paths.items():
            if position < len(tensors) and is_poison(tensors[position]):
                tensors[position] = true[path].to(tensors[position].device)
        return call.with_tensors(tensors)


def is_poison(tensor: Tensor) -> bool:
    """Whether a tensor is a placeholder: full of NaN, or of the least integer.

    >>> is_poison(torch.full((2, 3), float("nan"))), is_poison(torch.zeros(2))
    (True, False)
    """
    if tensor.numel() == 0 or tensor.is_meta:
        return False
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        return bool(tensor.detach().isnan().all())
    if tensor.dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        return bool((tensor == torch.iinfo(tensor.dtype).min).all())
    return False


def poisoned_positions(call: TopLevel) -> set[int]:
    """Which of a call's tensor arguments are placeholders."""
    tensors: Sequence[Tensor] = open_nest((call.args, call.kwargs)).tensors
    return {position for position, tensor in enumerate(tensors) if is_poison(tensor)}


def _is_the_same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.device == other.device and one.data_ptr() == other.data_ptr():
        return True
    return same_bits(one.detach().cpu(), other.detach().cpu())
