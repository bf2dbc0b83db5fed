"""Reading what one process has appended to one shelf."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from frostline.replay.digest_table import Rows
from frostline.replay.folder_format import ENTRY_BYTES, Digests, Flags, Words, decode_entries
from frostline.replay.mapped_files import Bytes, MappedFiles

# Entries parsed at once: 2 MiB of index, so that opening a large one takes little memory.
_CHUNK = 65_536


class Segment:
    """The entries and records of one segment, as far as they are known.

    Attributes:
        stem: the path of its two files, without their suffix.
        count: places that lie on the disk as a whole; a damaged index has some without a digest.

    >>> segment = Segment(Path("1-0123456789ab"), record_bytes=4, salt=0)
    >>> segment.scan()  # no such files
    (array([], dtype='|S16'), array([], dtype=int64))
    """

    def __init__(self, stem: Path, *, record_bytes: int, salt: int) -> None:
        self.stem = stem
        self.count = 0
        self._record_bytes = record_bytes
        self._salt = salt
        self._checksums = array("Q")
        self._verified = bytearray()

    def scan(self) -> tuple[Digests, Rows]:
        """Take in what was appended since: its digests and their places, the last first."""
        found: list[Digests] = []
        places: list[Rows] = []
        for digests, checksums, valid in self._appended():
            found.append(digests[valid])
            places.append(self.count + np.flatnonzero(valid))
            self._checksums.frombytes(checksums.tobytes())
            self._verified.extend(bytes(len(valid)))
            self.count += len(valid)
        if not found:
            return np.empty(0, "S16"), np.empty(0, np.int64)
        return np.concatenate(found)[::-1].copy(), np.concatenate(places)[::-1].copy()

    def read(self, places: Rows, records: Bytes, files: MappedFiles) -> list[int]:
        """Fill ``records`` ([n, record_bytes]) with those at ``places``; which are not as written.

        A record is verified when it is first read, by the copy that is handed out.
        """
        if places.max() >= self.count:
            return [place for place in places.tolist() if place >= self.count]
        size = self._record_bytes
        try:
            view = files.view(
                self.stem.with_suffix(".data"),
                needed=(int(places.max()) + 1) * size,
                length=self.count * size,
            )
        except (OSError, ValueError):  # deleted, cut off
            return [int(place) for place in places]
        # "clip" writes straight into `out`; "raise", the default, would copy once more.
        np.take(view.reshape(-1, size), places, axis=0, out=records, mode="clip")
        damaged = []
        for i, place in enumerate(places.tolist()):
            if not self._verified[place]:
                if xxhash.xxh3_64_intdigest(records[i].data) == self._checksums[place]:
                    self._verified[place] = True
                else:
                    damaged.append(place)
        return damaged

    def _appended(self) -> Iterator[tuple[Digests, Words, Flags]]:
        """The entries past ``count``, a chunk at a time, whose records lie within the data."""
        index = self.stem.with_suffix(".index")
        try:
            # The index first: its records were written before it, so the data has them.
            entries = index.stat().st_size // ENTRY_BYTES
            records = self.stem.with_suffix(".data").stat().st_size // self._record_bytes
            end = min(entries, records)
            if end <= self.count:
                return
            with index.open("rb") as file:
                file.seek(self.count * ENTRY_BYTES)
                while self.count < end:
                    raw = file.read(min(end - self.count, _CHUNK) * ENTRY_BYTES)
                    whole = len(raw) // ENTRY_BYTES * ENTRY_BYTES
                    if not whole:
                        return  # became shorter
                    yield decode_entries(raw[:whole], first=self.count, salt=self._salt)
        except OSError:
            return  # deleted, or not ours to read
