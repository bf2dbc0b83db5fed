"""A store in a folder, for the next run, for several processes, and for more than memory holds."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from frostline.errors import ReplayError
from frostline.replay.folder_disk import Disk, measure
from frostline.replay.folder_format import HEADER_NAME
from frostline.replay.folder_header import Header, read_header, write_header
from frostline.replay.folder_shelf import FolderShelf
from frostline.replay.records import check_shelf
from frostline.units import format_bytes


class FolderStore:
    """A store in a folder. Any number of processes may read and write it at once, without locks.

    A process that is killed leaves of each record all or nothing. What is altered, cut off or not
    of this store is never read as a record. A disk that is full, or may not be written, ends the
    recording, with one warning; what is there is replayed.

    Raises:
        ReplayError: the folder can't be made or read.

    >>> import torch
    >>> with FolderStore("features") as store:
    ...     shelf = store.shelf("0" * 32, record_bytes=4, note="layer 3")
    ...     shelf.add([b"a" * 16], torch.ones(1, 4, dtype=torch.uint8))
    >>> FolderStore("features").shelf("0" * 32, record_bytes=4).find([b"a" * 16])
    [0]
    """

    def __init__(self, folder: str | Path, budget: int | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self._disk = Disk(self.folder, budget)
        self._shelves: dict[str, FolderShelf] = {}
        _make(self.folder)
        # Also when nobody calls close(): at the end of the process, at the latest.
        weakref.finalize(self, _flush, self._shelves)
        if not os.access(self.folder, os.W_OK | os.X_OK):
            self._disk.limit.reach(f"{str(self.folder)!r} may not be written")

    @property
    def nbytes(self) -> int:
        """Bytes of the whole folder, whoever wrote them, and of what is still buffered."""
        return measure(self.folder)[0] + self._disk.buffered

    @property
    def entries(self) -> int:
        """Records of the whole folder, whoever wrote them; flushes to count them."""
        self.flush()
        return measure(self.folder)[1]

    @property
    def full(self) -> str | None:
        """Why nothing more is taken, or None."""
        return self._disk.limit.reached

    def shelf(self, key: str, record_bytes: int, *, note: str = "") -> FolderShelf:
        """The shelf under ``key`` (32 hex digits), made on first use with ``note`` in its header.

        Raises:
            ReplayError: no such key or size can be; the shelf has records of another size, is of
                another version, or its header is damaged.
        """
        check_shelf(key, record_bytes)
        with self._disk.lock():
            shelf = self._shelves.get(key)
            if shelf is None:
                self._enter(key, record_bytes, note)
                shelf = self._shelves[key] = FolderShelf(self._disk, key, record_bytes)
            elif shelf.record_bytes != record_bytes:
                raise _size_error(self.folder / key, shelf.record_bytes, record_bytes)
            return shelf

    def flush(self) -> None:
        """Write out what is still buffered."""
        _flush(self._shelves)

    def close(self) -> None:
        """Flush, and let go of the mapped files; nothing is taken after, what is there is read."""
        self.flush()
        self._disk.close()

    def __enter__(self) -> FolderStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        nbytes, entries = measure(self.folder)
        count = "1 entry" if entries == 1 else f"{entries:,} entries"
        return f"FolderStore({str(self.folder)!r}, {count}, {format_bytes(nbytes)})"

    def _enter(self, key: str, record_bytes: int, note: str) -> None:
        """Check the shelf's header, or write one."""
        folder = self.folder / key
        header = read_header(folder)
        if header is None:
            if self.full is None:
                self._make_shelf(folder, record_bytes, note)
        elif header.key != key:
            raise ReplayError(
                f"{str(folder)!r} has the header of shelf {header.key}; delete it, or use another"
                " folder as the store"
            )
        elif header.record_bytes != record_bytes:
            raise _size_error(folder, header.record_bytes, record_bytes)
        else:
            with suppress(OSError):
                os.utime(folder / HEADER_NAME)  # when it was last used, for `list_entries`

    def _make_shelf(self, folder: Path, record_bytes: int, note: str) -> None:
        now = datetime.now(timezone.utc)
        header = Header(key=folder.name, record_bytes=record_bytes, created=now, note=note)
        try:
            folder.mkdir(exist_ok=True)
            write_header(folder, header)
        except OSError as error:
            self._disk.fail(folder, error)


def _flush(shelves: dict[str, FolderShelf]) -> None:
    for shelf in list(shelves.values()):
        shelf.flush()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        next(folder.iterdir(), None)
    except OSError as error:
        raise ReplayError(
            f"cannot keep a store in {str(folder)!r}: {error.strerror or error}; choose a folder"
            ' that you may write to, or store="memory"'
        ) from error


def _size_error(folder: Path, has: int, wanted: int) -> ReplayError:
    return ReplayError(
        f"the shelf in {str(folder)!r} has records of {has} bytes, not {wanted}; delete it, or use"
        " another folder as the store"
    )
