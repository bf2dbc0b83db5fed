"""Which fields of a batch need not be loaded, since only recorded computation would use them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from frostline.errors import ReplayError
from frostline.proof.fingerprint import quick_key
from frostline.proof.traceless import same_bits
from frostline.replay.fields import leaves
from frostline.replay.memory import address_of
from frostline.replay.nest import open_nest
from frostline.replay.runner import TopLevel


class Fields:
    """A batch's fields, as the top-level calls of a pass get them.

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
        every = {} if batch is None else leaves(batch)
        self._leaves = {p: leaf for p, leaf in every.items() if isinstance(leaf, Tensor)}
        self._load = load
        self._made: dict[int, Tensor] = {}
        self.is_poisoned = is_poisoned

    def are_in(self, call: TopLevel) -> bool:
        """Whether a call takes a field of the batch, or what an earlier call made of it."""
        return any(
            address_of(tensor) in self._made or self.path_of(tensor) is not None
            for tensor in call.given.tensors
        )

    def note_output(self, output: Any) -> None:
        """What a call on this batch returned belongs to it, too."""
        self._made.update({address_of(tensor): tensor for tensor in open_nest(output).tensors})

    def paths_of(self, call: TopLevel) -> dict[int, str]:
        """Which of a call's tensor arguments, by position, is which field."""
        paths = {p: self.path_of(tensor) for p, tensor in enumerate(call.given.tensors)}
        return {position: path for position, path in paths.items() if path is not None}

    def path_of(self, tensor: Tensor) -> str | None:
        """Which field a tensor is: the same memory, or the same content on another device."""
        for path, leaf in self._leaves.items():
            if tensor is leaf or _is_view_of_all(tensor, leaf):
                return path
        for path, leaf in self._leaves.items():
            if tensor.device != leaf.device and _has_content_of(tensor, leaf):
                return path
        return None

    def is_lacking(self, call: TopLevel) -> bool:
        """Whether a call takes a field that was left out.

        Raises:
            ReplayError: it takes something that was computed from such a field.
        """
        if not self.is_poisoned:
            return False
        tensors = open_nest((call.args, call.kwargs)).tensors
        poisoned = [tensor for tensor in tensors if is_poison(tensor)]
        if any(self.path_of(tensor) is None for tensor in poisoned):
            raise ReplayError(
                "the model was given something that was computed from a field that was not loaded:"
                ' with inputs="skip" the fields of recorded samples are placeholders. Compute it'
                ' inside of the data set, or use inputs="load"'
            )
        return bool(poisoned)

    def with_content(self, call: TopLevel) -> TopLevel:
        """The same call with the fields that were left out loaded after all."""
        assert self._load is not None
        true = leaves(self._load())
        tensors = open_nest((call.args, call.kwargs)).tensors
        for position, tensor in enumerate(tensors):
            path = self.path_of(tensor) if is_poison(tensor) else None
            if path is not None:
                tensors[position] = true[path].to(tensor.device)
        return call.with_tensors(tensors)


def is_poison(tensor: Tensor) -> bool:
    """Whether a tensor is a placeholder: full of NaN, or of the least integer.

    >>> is_poison(torch.full((2, 3), float("nan"))), is_poison(torch.zeros(2))
    (True, False)
    """
    if tensor.numel() == 0 or tensor.is_meta:
        return False
    key = quick_key(tensor)
    if key not in _POISON_KEYS:
        if not _is_all_poison(tensor):
            return False
        if len(_POISON_KEYS) < _POISON_KEYS_KEPT:
            _POISON_KEYS.add(key)
    return True


# Content that was found to be poison: one digest, where comparing takes twenty times as long.
_POISON_KEYS: set[Hashable] = set()
_POISON_KEYS_KEPT = 256


def _is_all_poison(tensor: Tensor) -> bool:
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        return bool(tensor.detach().isnan().all())
    if tensor.dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        return bool((tensor == torch.iinfo(tensor.dtype).min).all())
    return False


def _is_view_of_all(one: Tensor, other: Tensor) -> bool:
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and one.device == other.device
        and one.data_ptr() == other.data_ptr()
        and one.stride() == other.stride()
    )


def _has_content_of(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return same_bits(one.detach().cpu(), other.detach().cpu())
