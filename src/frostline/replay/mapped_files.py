"""Files that are read through memory maps, not too many of them at once."""

from __future__ import annotations

import mmap
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class MappedFiles:
    """The most recently read files, mapped. Each map keeps a file descriptor open.

    >>> _ = Path("a.data").write_bytes(b"abcd")
    >>> MappedFiles().view(Path("a.data"), needed=2, length=4)
    array([ 97,  98,  99, 100], dtype=uint8)
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most or _share_of_descriptors()
        self._maps: OrderedDict[Path, mmap.mmap] = OrderedDict()

    def view(self, path: Path, *, needed: int, length: int) -> Bytes:
        """A file's first bytes: at least ``needed``; ``length`` if it has to be mapped anew.

        Raises:
            OSError: it can't be opened or mapped.
            ValueError: it is shorter than that.
        """
        mapped = self._maps.pop(path, None)
        if mapped is None or len(mapped) < needed:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
            while len(self._maps) >= self._most:
                self._maps.popitem(last=False)
        # To touch what has been cut off a mapped file would kill the process.
        if mapped.size() < len(mapped):
            raise ValueError(f"{str(path)!r} became shorter")
        self._maps[path] = mapped
        return np.frombuffer(mapped, np.uint8)

    def clear(self) -> None:
        """Let go of all maps."""
        self._maps.clear()


def _share_of_descriptors() -> int:
    """A quarter of those that the process may have: data loaders want theirs too."""
    if sys.platform == "win32":
        return 256
    import resource  # there is none on Windows

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 256 if limit == resource.RLIM_INFINITY else max(8, min(4096, limit // 4))
