"""Batches put together from memory, without asking the data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frostline.replay.fields import (
    can_be_poisoned,
    is_plain,
    is_skipped,
    leaves,
    rebuild,
    same_value,
)
from frostline.replay.fields_columns import Column, ItemColumn, RowColumn, SkippedColumn, fresh
from frostline.replay.fields_reading import Reader, Reading
from frostline.replay.fields_rows import Placeholder


class FieldMemory:
    """What a loader gave for each sample, so that it need not give it again.

    Of each field that is not skipped, the samples' rows or items are kept; of skipped ones only
    the look. Fields of booleans and of unsigned integers are kept always, for want of a value
    that poisons them. Once the batches turn out not to be put together sample by sample, nothing
    is kept any more and ``refused`` says why: their shapes differ (padding to the longest),
    a sample's part was not the same twice, a value of the whole batch changes.

    What no two batches showed is not known: a row that follows from its batch-mates, the same
    in all batches seen, or padding that would come out shorter among others. :meth:`disagrees`
    is for finding that, now and then, by a batch that was really loaded.

    Args:
        budget_bytes: how much to keep at most; None for no limit.

    Attributes:
        refused: why nothing can be put together, or None.

    >>> import torch
    >>> memory, skipped = FieldMemory(), frozenset({"image"})
    >>> for ids in ([0, 1, 2], [3, 4]):
    ...     batch = {"image": torch.rand(len(ids), 2), "label": 10 * torch.tensor(ids)}
    ...     memory.learn(ids, batch, skipped)
    >>> memory.assemble([4, 1])
    {'image': tensor([[nan, nan],
            [nan, nan]]), 'label': tensor([40, 10])}
    >>> print(memory.assemble([4, 5]))
    None
    """

    def __init__(self, *, budget_bytes: int | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.refused: str | None = None
        self._skipped: frozenset[str] = frozenset()
        self._forget()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes taken by the fields that are kept."""
        return sum(column.nbytes for column in self._columns.values())

    def knows(self, ids: Sequence[int]) -> bool:
        """Whether :meth:`assemble` may give a batch of these samples; fast.

        Two batches must have been learned, for one alone does not show what belongs to a sample.
        """
        return (
            self.refused is None
            and self._batches > 1
            and all(identity in self._rows for identity in ids)
        )

    def learn(self, ids: Sequence[int], batch: Any, skipped: frozenset[str]) -> None:
        """Remember a batch that was loaded; of samples known already, compare.

        Args:
            ids: the samples, in the batch's order.
            batch: the batch; it is only read, and nothing of it is held.
            skipped: paths of the fields that need not be kept, or of containers of them. If they
                are others than before, all is forgotten.
        """
        if skipped != self._skipped:
            self._skipped = skipped
            self._forget()
        if self.refused is not None or not ids:
            return
        reading = self._reader.read(batch, samples=len(ids), skipped=skipped)
        reason = None
        if reading.opaque is not None:
            reason = f"{reading.opaque!r} holds objects that can't be kept sample by sample"
        elif reading.unsettled is not None:
            return
        elif self._batches == 0:
            self._begin(batch, reading)
        else:
            reason = self._mismatch(reading)
        reason = reason or self._keep(ids, reading)
        if reason is not None:
            self._forget()
            self.refused = reason
        else:
            self._batches += 1

    def assemble(self, ids: Sequence[int]) -> Any:
        """The batch as the loader would give it, in memory of its own, skipped fields poisoned.

        Args:
            ids: the samples, in the batch's order.

        Returns:
            The batch; None if a sample is not known or it can't be put together for sure.
        """
        if not ids or not self.knows(ids):
            return None
        rows = [self._rows[identity] for identity in ids]
        made: dict[str, Any] = {}
        for path, column in self._columns.items():
            made[path] = column.part(rows)
            if made[path] is None:
                return None

        def leaf_at(path: str, leaf: Any) -> Any:
            if path in self._looks:
                return self._looks[path].make()
            return made[path] if path in made else fresh(leaf)

        return rebuild(self._skeleton, leaf_at)

    def disagrees(self, ids: Sequence[int], batch: Any) -> str | None:
        """Compare a batch that was loaded with the one that would have been put together.

        Returns:
            The path of the first field that differs in a bit (of a skipped field: in shape, dtype
            or device); None if none does, or if none could have been put together.
        """
        assembled = self.assemble(ids)
        if assembled is None:
            return None
        mine, true = leaves(assembled), leaves(batch)
        for path in [*true, *mine]:
            if path not in mine or path not in true:
                return path
            one, other = mine[path], true[path]
            if is_plain(one) and is_plain(other) and self._is_poisoned(path, other.dtype):
                if Placeholder.of(one) != Placeholder.of(other):
                    return path
            elif not same_value(one, other):
                return path
        return None

    def _forget(self) -> None:
        self._reader = Reader()
        self._batches = 0
        self._rows: dict[int, int] = {}
        self._columns: dict[str, Column] = {}
        self._layout: dict[str, Any] = {}
        self._constants: dict[str, Any] = {}
        self._looks: dict[str, Placeholder] = {}
        self._skeleton: Any = None

    def _is_poisoned(self, path: str, dtype: Any) -> bool:
        return is_skipped(path, self._skipped) and can_be_poisoned(dtype)

    def _begin(self, batch: Any, reading: Reading) -> None:
        """Take the first batch's containers and constants."""
        self._layout = reading.layout
        self._looks = reading.placeholders
        self._constants = {path: fresh(leaf) for path, leaf in reading.constants.items()}
        for path in reading.rows:
            form = reading.layout[path]
            self._columns[path] = SkippedColumn(form) if form.skipped else RowColumn(form)
        for path, sequence in reading.items.items():
            self._columns[path] = ItemColumn(path, type(sequence), self._skipped)
        self._skeleton = rebuild(
            batch, lambda path, _: self._constants.get(path), whole=reading.items
        )

    def _mismatch(self, reading: Reading) -> str | None:
        """Why this batch is not of a kind with the first; None if it is."""
        for path in [*reading.layout, *self._layout]:
            if reading.layout.get(path) != self._layout.get(path):
                return (
                    f"{path.rstrip(':')!r} has another structure, shape or dtype from batch to "
                    "batch, as padding to the longest gives; pad to a fixed length"
                )
        for path in [*reading.constants, *self._constants]:
            known = path in reading.constants and path in self._constants
            if not known or not same_value(reading.constants[path], self._constants[path]):
                return f"{path!r} belongs to no sample and is not the same in every batch"
        return None

    def _keep(self, ids: Sequence[int], reading: Reading) -> str | None:
        """Keep what is new and compare what is known; why that fails, or None."""
        rows: list[int] = []
        new: list[int] = []  # places in the batch
        for place, identity in enumerate(ids):
            if identity not in self._rows:
                self._rows[identity] = len(self._rows)
                new.append(place)
            rows.append(self._rows[identity])
        for path, column in self._columns.items():
            part = reading.items[path] if path in reading.items else reading.rows[path]
            if not column.learn(part, rows=rows, new=new):
                return (
                    f"{path!r} was not the same twice for one sample: the data set is random, or "
                    "the collate function mixes samples; with random augmentation, use views=K"
                )
        if self.budget_bytes is not None and self.nbytes > self.budget_bytes:
            return f"the fields that are not skipped take more than {self.budget_bytes} bytes"
        return None
