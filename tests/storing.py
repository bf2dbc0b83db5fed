"""Records whose content follows from their digest, so that any store can be checked by itself."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from frostline.replay.store import Shelf

KEY = "0123456789abcdef" * 2


def digest(name: object) -> bytes:
    return hashlib.md5(str(name).encode()).digest()


def record(digest: bytes, size: int) -> bytes:
    return hashlib.shake_128(digest).digest(size)


def records(digests: Sequence[bytes], size: int) -> Tensor:
    content = b"".join(record(digest, size) for digest in digests)
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, size).copy())


def fill(shelf: Shelf, names: Sequence[object]) -> list[bytes]:
    """Add a record under the digest of each name."""
    digests = [digest(name) for name in names]
    shelf.add(digests, records(digests, shelf.record_bytes))
    return digests


def found(shelf: Shelf, digests: Sequence[bytes]) -> list[bytes]:
    """Those of the digests that the shelf has; all of their records are checked."""
    rows = shelf.find(digests)
    known = [digest for digest, row in zip(digests, rows, strict=True) if row >= 0]
    read = shelf.read([row for row in rows if row >= 0])
    assert torch.equal(read, records(known, shelf.record_bytes) if known else read[:0])
    return known


def fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process, whose number this is; it ends with 0 if nothing failed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, for threads
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def succeeded(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
