"""A store in memory: blocks of records, so that to grow copies nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt
from torch import Tensor

from frostline.errors import ReplayError
from frostline.replay.limits import Limit
from frostline.replay.records import check_digests, check_records, check_shelf, new_records
from frostline.units import format_bytes

# Memory is taken from the system as a block is filled, so a large one costs nothing.
_BLOCK_BYTES = 16 * 2**20


class MemoryStore:
    """A store that lasts as long as the process.

    >>> import torch
    >>> store = MemoryStore()
    >>> store.shelf("0" * 32, record_bytes=4).add([b"a" * 16], torch.ones(1, 4, dtype=torch.uint8))
    >>> store
    MemoryStore(1 entry, 4 B)
    """

    def __init__(self, budget: int | None = None) -> None:
        self._limit = Limit(budget)
        self._lock = threading.Lock()
        self._shelves: dict[str, MemoryShelf] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all records."""
        return sum(shelf.nbytes for shelf in self._shelves.values())

    @property
    def entries(self) -> int:
        """Number of all records."""
        return sum(len(shelf) for shelf in self._shelves.values())

    @property
    def full(self) -> str | None:
        """Why nothing more is taken, or None."""
        return self._limit.reached

    def shelf(self, key: str, record_bytes: int, *, note: str = "") -> MemoryShelf:
        """The shelf under ``key``, made on first use; nobody lists a memory store's notes.

        Raises:
            ReplayError: no such key or size can be, or the shelf has records of another size.
        """
        check_shelf(key, record_bytes)
        with self._lock:
            if key not in self._shelves:
                self._shelves[key] = MemoryShelf(self, record_bytes)
        shelf = self._shelves[key]
        if shelf.record_bytes != record_bytes:
            raise ReplayError(
                f"shelf {key} has records of {shelf.record_bytes} bytes, not {record_bytes}"
            )
        return shelf

    def flush(self) -> None:
        """Nothing is buffered in memory."""

    def close(self) -> None:
        """Let go of every record; nothing is taken after."""
        self._limit.close()
        for shelf in self._shelves.values():
            shelf._clear()

    def __repr__(self) -> str:
        return f"MemoryStore({_count(self.entries)}, {format_bytes(self.nbytes)})"


class MemoryShelf:
    """One shelf of a :class:`MemoryStore`, which makes it.

    >>> import torch
    >>> shelf = MemoryStore().shelf("0" * 32, record_bytes=2)
    >>> shelf.add([b"a" * 16, b"b" * 16], torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8))
    >>> shelf.read(shelf.find([b"b" * 16]))
    tensor([[3, 4]], dtype=torch.uint8)
    """

    def __init__(self, store: MemoryStore, record_bytes: int) -> None:
        self.record_bytes = record_bytes
        self._store = store
        self._rows: dict[bytes, int] = {}
        self._blocks: list[npt.NDArray[np.uint8]] = []
        self._block_rows = max(1, _BLOCK_BYTES // record_bytes)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the shelf's records."""
        return len(self._rows) * self.record_bytes

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """The row of each digest, -1 where there is none."""
        return list(map(self._rows.get, digests, repeat(-1)))

    def add(self, digests: Sequence[bytes], records: Tensor) -> None:
        """Keep ``records`` (uint8 [n, record_bytes], CPU); digests that are known are passed over.

        Raises:
            ReplayError: the records do not have that shape, or a digest has not 16 bytes.
        """
        values = check_records(digests, records, self.record_bytes)
        check_digests(digests)
        store = self._store
        with store._lock:
            fresh = {digest: i for i, digest in enumerate(digests) if digest not in self._rows}
            more = len(fresh) * self.record_bytes
            if not fresh or not store._limit.admits(used=store.nbytes, more=more):
                return
            start = len(self._rows)
            for row, i in enumerate(fresh.values(), start):
                if row == len(self._blocks) * self._block_rows:
                    self._blocks.append(new_records(self._block_rows, self.record_bytes).numpy())
                self._blocks[row // self._block_rows][row % self._block_rows] = values[i]
            # The records stand before their digests do: another thread may be reading.
            self._rows.update(zip(fresh, range(start, start + len(fresh)), strict=True))

    def read(self, rows: Sequence[int]) -> Tensor:
        """The records of ``rows``: uint8 [n, record_bytes], in memory of their own.

        Raises:
            IndexError: a row that ``find`` never gave.
        """
        if len(rows) and not 0 <= min(rows) <= max(rows) < len(self._rows):
            raise IndexError(f"there are no such rows: {rows}")
        records = new_records(len(rows), self.record_bytes)
        if len(self._blocks) == 1:
            np.take(self._blocks[0], rows, axis=0, out=records.numpy(), mode="clip")
            return records
        for target, row in zip(records.numpy(), rows, strict=True):
            target[:] = self._blocks[row // self._block_rows][row % self._block_rows]
        return records

    def _clear(self) -> None:
        with self._store._lock:
            self._rows.clear()
            self._blocks.clear()


def _count(entries: int) -> str:
    return "1 entry" if entries == 1 else f"{entries:,} entries"
