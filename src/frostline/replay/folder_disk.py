"""What the shelves of one folder store share: the lock, the mapped files, the room on the disk."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from frostline.replay.folder_format import (
    ENTRY_BYTES,
    HEADER_NAME,
    segment_files,
    shelf_folders,
)
from frostline.replay.limits import Limit
from frostline.replay.mapped_files import MappedFiles


class Pace:
    """Keeps what looks at the disk to once a second, and to a hundredth of the time.

    >>> pace = Pace()
    >>> with pace.round():
    ...     pass
    >>> pace.due()
    False
    """

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        """Whether it is time for the next look."""
        return time.monotonic() >= self._next

    @contextmanager
    def round(self) -> Iterator[None]:
        """Around a look: the next one waits for longer where this one took long."""
        start = time.monotonic()
        yield
        end = time.monotonic()
        self._next = end + max(1.0, 100 * (end - start))


class Disk:
    """The folder of a store, shared by its shelves.

    Attributes:
        root: the folder.
        limit: whether more may be written.
        files: the data files that are mapped.
        buffered: bytes that are not written yet.

    >>> Disk(Path("store"), budget=100).admits(40)
    True
    """

    def __init__(self, root: Path, budget: int | None) -> None:
        self.root = root
        self.limit = Limit(budget)
        self.files = MappedFiles()
        self.buffered = 0
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._pace = Pace()
        self._measured = 0
        self._written = 0

    def lock(self) -> AbstractContextManager[bool]:
        """The lock that every use of a shelf holds."""
        if self._pid != os.getpid():
            # Forked: the thread that held the lock, if one did, isn't in this process.
            self._pid, self._lock = os.getpid(), threading.RLock()
        return self._lock

    def admits(self, more: int) -> bool:
        """Whether the budget has room for ``more`` bytes beside all that anybody has written."""
        if self.limit.budget is not None and self._pace.due():
            with self._pace.round():
                self._measured, self._written = measure(self.root)[0], 0
        return self.limit.admits(used=self._measured + self._written + self.buffered, more=more)

    def flushes(self, nbytes: int) -> None:
        """Count what is written now; the next look at the disk finds it by itself."""
        self.buffered -= nbytes
        self._written += nbytes

    def close(self) -> None:
        """Let go of the mapped files, and take nothing more."""
        self.limit.close()
        self.files.clear()

    def fail(self, path: Path, error: OSError) -> None:
        """Nothing more is written after an error, which is said once."""
        self.limit.reach(f"{str(path)!r} can't be written ({error.strerror or error})")


def measure(root: Path) -> tuple[int, int]:
    """Bytes and entries of all shelves in a folder, as they are on the disk.

    >>> measure(Path("nowhere"))
    (0, 0)
    """
    nbytes = entries = 0
    for folder in shelf_folders(root):
        shelf_bytes, shelf_entries = measure_shelf(folder)
        nbytes += shelf_bytes
        entries += shelf_entries
    return nbytes, entries


def measure_shelf(folder: Path) -> tuple[int, int]:
    """Bytes and entries of one shelf on the disk; nothing where there is no header.

    >>> measure_shelf(Path("nowhere"))
    (0, 0)
    """
    try:
        nbytes = (folder / HEADER_NAME).stat().st_size
    except OSError:
        return 0, 0
    files = segment_files(folder)
    indices = [file.nbytes for file in files if file.path.suffix == ".index"]
    return nbytes + sum(file.nbytes for file in files), sum(n // ENTRY_BYTES for n in indices)
