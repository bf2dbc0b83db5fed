"""What a store of recorded values is, and how one is opened.

A store has shelves, one for each place in a model whose values are kept; a shelf has records of
one fixed size in bytes, each under a digest of everything that its value depends on. Records are
never overwritten: another value would have another digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from frostline.errors import ReplayError
from frostline.replay.folder_store import FolderStore
from frostline.replay.limits import ReplayWarning, StoreDamaged
from frostline.replay.memory_store import MemoryStore

__all__ = ["ReplayWarning", "Shelf", "Store", "StoreDamaged", "open_store"]


@runtime_checkable
class Shelf(Protocol):
    """Records of one size, each under a digest of 16 bytes.

    >>> import torch
    >>> shelf = open_store("memory").shelf("0" * 32, record_bytes=3)
    >>> shelf.add([b"a" * 16], torch.tensor([[1, 2, 3]], dtype=torch.uint8))
    >>> rows = shelf.find([b"a" * 16, b"b" * 16])
    >>> rows
    [0, -1]
    >>> shelf.read(rows[:1])
    tensor([[1, 2, 3]], dtype=torch.uint8)
    """

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that the shelf's records take."""
        ...

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """The row of each digest, -1 where there is none. Rows hold while the store is open."""
        ...

    def add(self, digests: Sequence[bytes], records: Tensor) -> None:
        """Keep ``records`` (uint8 [n, record_bytes], CPU); digests that are known are passed over.

        Raises:
            ReplayError: the records do not have that shape, or a digest has not 16 bytes.
        """
        ...

    def read(self, rows: Sequence[int]) -> Tensor:
        """The records of ``rows``: uint8 [n, record_bytes], in memory of their own.

        Raises:
            StoreDamaged: one is not what was written. It is forgotten: ``find`` says -1 now.
            IndexError: a row that ``find`` never gave.
        """
        ...


@runtime_checkable
class Store(Protocol):
    """Shelves by key, with what they hold together.

    >>> store = open_store("memory", budget=1024)
    >>> store.nbytes, store.entries, store.full
    (0, 0, None)
    """

    @property
    def nbytes(self) -> int:
        """Bytes that the store takes: of a folder, on the disk, whoever wrote them."""
        ...

    @property
    def entries(self) -> int:
        """Records that the store holds: of a folder, on the disk, whoever wrote them."""
        ...

    @property
    def full(self) -> str | None:
        """Why nothing more is taken (the budget, the disk), or None."""
        ...

    def shelf(self, key: str, record_bytes: int, *, note: str = "") -> Shelf:
        """The shelf under ``key`` (32 hex digits); ``note`` is for people who list the store.

        Raises:
            ReplayError: no such key or size can be, or the shelf has records of another size.
        """
        ...

    def flush(self) -> None:
        """Write out what is still buffered."""
        ...

    def close(self) -> None:
        """Flush, and give back what the store holds of memory and files; nothing is taken after."""
        ...


def open_store(store: str | Path | Store, budget: int | None = None) -> Store:
    """Open ``"memory"``, or a folder (made if need be); a store that is open is handed through.

    Args:
        store: ``"memory"``, a folder's path, or a store.
        budget: the most bytes that it may hold; a folder's counts what is there already.

    Raises:
        ReplayError: the folder can't be made or read, or the budget can't be kept.

    >>> open_store("memory")
    MemoryStore(0 entries, 0 B)
    >>> open_store("features", budget=2**30)
    FolderStore('features', 0 entries, 0 B)
    """
    if isinstance(store, str | Path):
        if store == "memory":
            return MemoryStore(budget)
        if store == "":
            raise ReplayError('a store is "memory" or a folder; an empty path names neither')
        return FolderStore(Path(store), budget)
    if not isinstance(store, Store):
        raise ReplayError(f'a store is "memory", a folder or a Store, not {store!r}')
    if budget is not None:
        raise ReplayError("give the budget where the store is made; this one is open already")
    return store
