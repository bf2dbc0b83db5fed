"""Appending to a segment of one's own."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

import xxhash

from frostline.replay.folder_format import ENTRY_BYTES, encode_entries
from frostline.replay.mapped_files import Bytes


class SegmentWriter:
    """Buffers records for one segment, and appends them: the records first, then their entries.

    It keeps no file open, so that a model with hundreds of shelves doesn't run out of descriptors.

    Attributes:
        stem: the path of its two files, without their suffix.
        pid: the process that it belongs to; a forked one must not write there.
        digests: those that are buffered.

    >>> import numpy as np
    >>> writer = SegmentWriter(Path(), record_bytes=4, salt=0)
    >>> writer.append([b"a" * 16], np.zeros((1, 4), np.uint8))
    0
    >>> writer.flush()
    >>> [writer.stem.with_suffix(s).stat().st_size for s in (".data", ".index")]
    [4, 32]
    """

    def __init__(self, folder: Path, *, record_bytes: int, salt: int) -> None:
        self.pid = os.getpid()
        # Processes on other machines that share the folder may have the same number.
        self.stem = folder / f"{self.pid}-{secrets.token_hex(6)}"
        self.digests: list[bytes] = []
        self._salt = salt
        self._record_bytes = record_bytes
        self._written = 0
        self._data = bytearray()
        self._checksums: list[int] = []

    @property
    def end(self) -> int:
        """The place after the last record, buffered ones included."""
        return self._written + len(self.digests)

    @property
    def buffered(self) -> int:
        """Bytes that a flush will write."""
        return len(self.digests) * (self._record_bytes + ENTRY_BYTES)

    def append(self, digests: list[bytes], records: Bytes) -> int:
        """Buffer records ([n, record_bytes]); the place in the segment of the first."""
        first = self.end
        self.digests += digests
        self._data += records.data
        self._checksums += [xxhash.xxh3_64_intdigest(record.data) for record in records]
        return first

    def flush(self) -> None:
        """Write out what is buffered. After a failure the writer is of no more use.

        Raises:
            OSError: a part of it, or nothing, could be written; what has been written is whole.
        """
        entries = encode_entries(
            b"".join(self.digests), self._checksums, first=self._written, salt=self._salt
        )
        data, self._data = self._data, bytearray()
        self.digests, self._checksums = [], []
        size = self._record_bytes
        records, data_error = _append(
            self.stem.with_suffix(".data"), data, start=self._written * size, unit=size
        )
        written, index_error = _append(
            self.stem.with_suffix(".index"),
            entries[: records * ENTRY_BYTES],
            start=self._written * ENTRY_BYTES,
            unit=ENTRY_BYTES,
        )
        self._written += written
        for error in (data_error, index_error):
            if error is not None:
                raise error


def _append(
    path: Path, content: bytes | bytearray, *, start: int, unit: int
) -> tuple[int, OSError | None]:
    """Append to a file of ``start`` bytes; how many whole units arrived, and what went wrong."""
    written = 0
    try:
        with path.open("ab", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != start:
                raise OSError(errno.EIO, "it was changed by another program", str(path))
            try:
                with memoryview(content) as rest:
                    while written < len(content):
                        written += os.write(file.fileno(), rest[written:])
            except OSError:
                # The begun unit goes: its bytes may be what the next write needs.
                os.ftruncate(file.fileno(), start + written // unit * unit)
                raise
    except OSError as error:
        return written // unit, error
    return written // unit, None
