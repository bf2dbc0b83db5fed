"""How a batch is read: what of it belongs to a sample each, and what to the batch."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
from torch import Tensor

from frostline.replay.fields import (
    can_be_poisoned,
    is_immutable,
    is_plain,
    is_skipped,
    joined,
    leaves,
    parts,
)
from frostline.replay.fields_rows import Placeholder, RowForm

# Among so many samples, a tuple such as a height and a width is not taken for one item a sample.
_MANY = 8


@dataclass(kw_only=True)
class Reading:
    """One batch, sorted by what each part belongs to.

    Attributes:
        layout: all that must be alike in every batch, by path: containers, shapes, dtypes.
        rows: tensors and arrays with a row for each sample.
        items: sequences with an item for each sample.
        constants: what must have the same value in every batch.
        placeholders: skipped leaves without rows.
        unsettled: path of a sequence that may hold its items by sample or not; None if settled.
        opaque: path of a leaf that can't be kept; None if there is none.
    """

    layout: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Tensor | numpy.ndarray[Any, Any]] = field(default_factory=dict)
    items: dict[str, Sequence[Any]] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    placeholders: dict[str, Placeholder] = field(default_factory=dict)
    unsettled: str | None = None
    opaque: str | None = None


class Reader:
    """Reads batches, and learns from several what one alone leaves open.

    A list of two tensors beside two samples may be two fields or two samples. If its items are
    unlike each other, they are fields; if some have no row a sample, they are samples; otherwise
    a batch of another size tells. So does it for a tensor that is as long as the batch.

    >>> import torch
    >>> reading = Reader().read([torch.ones(3, 2), ["a", "b", "c"]], samples=3, skipped=frozenset())
    >>> sorted(reading.rows), reading.unsettled
    (['0'], '1')
    """

    def __init__(self) -> None:
        self._by_sample: dict[str, bool] = {}
        self._sizes: dict[str, int] = {}
        self._without_rows: set[str] = set()

    def read(self, batch: Any, *, samples: int, skipped: frozenset[str]) -> Reading:
        """Sort the parts of a batch.

        Args:
            batch: a batch; it is only read.
            samples: how many it holds.
            skipped: paths of fields, or of containers of fields, that are not to be kept.
        """
        reading = Reading()
        self._look(batch, "", samples, skipped, reading)
        return reading

    def _look(
        self, value: Any, path: str, samples: int, skipped: frozenset[str], reading: Reading
    ) -> None:
        held = parts(value)
        if held is None:
            self._sort_leaf(value, path, samples, is_skipped(path, skipped), reading)
            return
        if type(value) in (tuple, list):
            by_sample = self._holds_samples(value, path, samples)
            if by_sample is None:
                reading.unsettled = path
            if by_sample:
                reading.layout[path] = type(value), "by sample"
                reading.items[path] = value
                if not all(map(_can_be_kept, leaves(value).values())):
                    reading.opaque = path
                return
        reading.layout[f"{path}:"] = type(value), tuple(held)
        # What a container holds beside its items, as BatchEncoding does, is kept from the first.
        reading.constants.update(
            {f"{path}:{name}": extra for name, extra in leaves(_beside(value, held)).items()}
        )
        for key, part in held.items():
            self._look(part, joined(path, key), samples, skipped, reading)

    def _sort_leaf(
        self, leaf: Any, path: str, samples: int, skipped: bool, reading: Reading
    ) -> None:
        if is_plain(leaf):
            skipped = skipped and can_be_poisoned(leaf.dtype)
            if leaf.ndim == 0 or leaf.shape[0] != samples:
                self._without_rows.add(path)  # nor has it any where the numbers happen to agree
            if path not in self._without_rows:
                reading.layout[path] = RowForm.of(leaf, skipped=skipped)
                reading.rows[path] = leaf
                return
            if skipped:
                reading.placeholders[path] = reading.layout[path] = Placeholder.of(leaf)
                return
        reading.layout[path] = "constant"
        reading.constants[path] = leaf

    def _holds_samples(self, sequence: Sequence[Any], path: str, samples: int) -> bool | None:
        if len(sequence) != samples:
            self._by_sample[path] = False
        if path not in self._by_sample:
            settled = _holds_samples(sequence, samples)
            if settled is None and self._sizes.setdefault(path, samples) != samples:
                settled = True  # its length followed the number of samples
            if settled is None and samples == 1:
                return False  # either way its one item belongs to the one sample
            if settled is not None:
                self._by_sample[path] = settled
        return self._by_sample.get(path)


def _holds_samples(sequence: Sequence[Any], samples: int) -> bool | None:
    if any(_kind(item) != _kind(sequence[0]) for item in sequence):
        return False
    contents = [leaf for leaf in leaves(sequence).values() if is_plain(leaf)]
    if contents:
        in_rows = all(leaf.ndim > 0 and leaf.shape[0] == samples for leaf in contents)
        return None if in_rows else True
    return True if samples > _MANY else None


def _kind(item: Any) -> Any:
    if is_plain(item):
        return type(item), item.dtype, item.ndim
    return type(item), tuple(item) if isinstance(item, Mapping) else None


def _can_be_kept(leaf: Any) -> bool:
    return is_plain(leaf) or is_immutable(leaf)


def _beside(container: Any, held: Mapping[Any, Any]) -> dict[str, Any]:
    stored = {*held, "data"} if isinstance(container, UserDict) else set(held)
    own = getattr(container, "__dict__", {})
    return {name: value for name, value in own.items() if name not in stored}
