"""What is kept of one field: the rows, items or looks of all samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from frostline.replay.fields import (
    can_be_poisoned,
    is_plain,
    is_skipped,
    joined,
    leaves,
    rebuild,
    same_value,
)
from frostline.replay.fields_rows import Arena, Placeholder, RowForm


class Column(Protocol):
    """One field of all samples. Samples are named by their row: 0, 1, 2, … as they came."""

    def learn(self, part: Any, *, rows: Sequence[int], new: Sequence[int]) -> bool:
        """Keep a batch's part of the samples at the places ``new``; compare the others'.

        Returns:
            Whether the samples that were known already came as they were.
        """

    def part(self, rows: Sequence[int]) -> Any:
        """The part of a batch of these samples; None if it can't be told for sure."""

    @property
    def nbytes(self) -> int:
        """Bytes kept."""


class RowColumn:
    """A tensor or an array with a row for each sample.

    >>> leaf = torch.tensor([[1.0], [2.0]])
    >>> column = RowColumn(RowForm.of(leaf, skipped=False))
    >>> column.learn(leaf, rows=[0, 1], new=[0, 1])
    True
    >>> column.learn(leaf + 5, rows=[1, 2], new=[1])  # sample 1 was 2.0, now it is 6.0
    False
    """

    def __init__(self, form: RowForm) -> None:
        self._form = form
        self._arena = Arena(form.row_bytes)
        self._whole = _SameInAll()

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return self._arena.nbytes

    def learn(self, part: Any, *, rows: Sequence[int], new: Sequence[int]) -> bool:
        """Keep the new rows, compare the known ones."""
        content = self._form.content(part)
        self._arena.write([rows[place] for place in new], content[list(new)])
        self._whole.see(content, torch.equal)
        return len(new) == len(rows) or torch.equal(self._arena.read(rows), content)

    def part(self, rows: Sequence[int]) -> Any:
        """The rows as a leaf of a batch."""
        content = self._arena.read(rows)
        return self._form.leaf(content) if self._whole.allows(content, torch.equal) else None


class SkippedColumn:
    """A tensor or an array with a row for each sample, of which only the look is kept.

    >>> SkippedColumn(RowForm.of(torch.ones(4, 1), skipped=True)).part([2, 0])
    tensor([[nan],
            [nan]])
    """

    nbytes = 0

    def __init__(self, form: RowForm) -> None:
        self._form = form

    def learn(self, part: Any, *, rows: Sequence[int], new: Sequence[int]) -> bool:
        """Keep nothing."""
        return True

    def part(self, rows: Sequence[int]) -> Any:
        """A poisoned leaf."""
        return self._form.placeholder(len(rows))


class ItemColumn:
    """A list or tuple with an item for each sample; skipped leaves of the items are poisoned.

    >>> column = ItemColumn("name", list, frozenset())
    >>> column.learn(["ann", "bob"], rows=[0, 1], new=[0, 1])
    True
    >>> column.part([0, 1])
    ['ann', 'bob']
    """

    def __init__(self, path: str, sequence: type, skipped: frozenset[str]) -> None:
        self._path = path
        self._sequence = sequence
        self._skipped = skipped
        self._items: dict[int, _Item] = {}
        self._whole = _SameInAll()
        self.nbytes = 0

    def learn(self, part: Any, *, rows: Sequence[int], new: Sequence[int]) -> bool:
        """Keep the new items, compare the known ones."""
        items = [self._kept(item, place) for place, item in enumerate(part)]
        for place in new:
            self._items[rows[place]] = items[place]
            self.nbytes += items[place].nbytes
        self._whole.see(items, _same_items)
        return len(new) == len(rows) or _same_items([self._items[row] for row in rows], items)

    def part(self, rows: Sequence[int]) -> Any:
        """The items as a sequence of the same class."""
        items = [self._items[row] for row in rows]
        if not self._whole.allows(items, _same_items):
            return None
        return self._sequence(item.fresh() for item in items)

    def _kept(self, item: Any, place: int) -> _Item:
        looks: dict[str, Placeholder] = {}

        def keep(path: str, leaf: Any) -> Any:
            here = joined(self._path, place)
            full = f"{here}.{path}" if path else here
            if is_plain(leaf) and can_be_poisoned(leaf.dtype) and is_skipped(full, self._skipped):
                looks[path] = Placeholder.of(leaf)
                return None
            return fresh(leaf)

        return _Item(content=rebuild(item, keep), looks=looks)


def fresh(leaf: Any) -> Any:
    """A leaf that shares no memory with this one; what is no tensor and no array is handed on.

    >>> ones = torch.ones(2)
    >>> fresh(ones) is ones, fresh("text")
    (False, 'text')
    """
    if not is_plain(leaf):
        return leaf
    return leaf.clone() if isinstance(leaf, Tensor) else leaf.copy()


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One sample's item: poisoned leaves are None in it, and their looks stand beside it."""

    content: Any
    looks: dict[str, Placeholder]

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in leaves(self.content).values() if is_plain(leaf))

    def fresh(self) -> Any:
        looks = self.looks
        return rebuild(
            self.content,
            lambda path, leaf: looks[path].make() if path in looks else fresh(leaf),
        )

    def same(self, other: _Item) -> bool:
        mine, theirs = leaves(self.content), leaves(other.content)
        return (
            self.looks == other.looks
            and mine.keys() == theirs.keys()
            and all(same_value(leaf, theirs[path]) for path, leaf in mine.items())
        )


class _SameInAll:
    """A part that was the same in every batch so far, and so may belong to no sample.

    Then it is told by both readings, or not at all.
    """

    def __init__(self) -> None:
        self._part: Any = None
        self._seen = False

    def see(self, part: Any, same: Any) -> None:
        if self._seen and self._part is not None and not _alike(self._part, part, same):
            self._part = None
        elif not self._seen:
            # A tensor may be a view of the user's batch, which the loop is free to change.
            self._part = part.clone() if isinstance(part, Tensor) else part
            self._seen = True

    def allows(self, part: Any, same: Any) -> bool:
        return self._part is None or _alike(self._part, part, same)


def _alike(one: Any, other: Any, same: Any) -> bool:
    return len(one) == len(other) and bool(same(one, other))


def _same_items(one: Sequence[_Item], other: Sequence[_Item]) -> bool:
    return len(one) == len(other) and all(a.same(b) for a, b in zip(one, other, strict=True))
