"""What lies in a folder store: a folder for each shelf, with a header and segments.

::

    <folder>/<key>/shelf.json                       the header: version, size of a record, …
    <folder>/<key>/<process>-<random>.data          records, one after another
    <folder>/<key>/<process>-<random>.index         an entry of 32 bytes for each record

A segment belongs to the one process that appends to it. An entry is a digest, the checksum
(xxh3_64) of its record, and a check of the entry itself that also depends on the shelf, the size
of its records and the entry's place: what is torn, flipped, or from elsewhere is no entry.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

HEADER_NAME = "shelf.json"
ENTRY_BYTES = 32
VERSION = 1
FORMAT = "frostline replay shelf"

Digests = npt.NDArray[np.bytes_]
"""Digests as an array of dtype S16: numpy compares and sorts them without Python."""
Words = npt.NDArray[np.uint64]
"""Words of eight bytes."""
Flags = npt.NDArray[np.bool_]
"""One yes or no each."""

_KEY = re.compile(r"[0-9a-f]{32}")
_SEGMENT = re.compile(r"(\d+-[0-9a-f]{12})\.(data|index)")
# The odd constants of splitmix64: a product with one of them loses nothing.
_FACTORS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)


@dataclass(frozen=True, kw_only=True)
class SegmentFile:
    """One file of a segment."""

    path: Path
    """Where it is."""
    nbytes: int
    """Its size."""
    changed: float
    """When it was last written to: seconds since 1970."""


def shelf_folders(root: Path) -> Iterator[Path]:
    """The folders in ``root`` that are named as shelves are; none where nothing can be listed.

    >>> list(shelf_folders(Path("nowhere")))
    []
    """
    try:
        found = sorted(path for path in root.iterdir() if _KEY.fullmatch(path.name))
    except OSError:
        return
    yield from found


def segment_stems(folder: Path) -> list[Path]:
    """The segments in a shelf's folder, without their suffixes, the last written first.

    A record that was found damaged is recorded again, in a later segment: that copy comes first.

    >>> segment_stems(Path("nowhere"))
    []
    """
    indices = [file for file in segment_files(folder) if file.path.suffix == ".index"]
    indices.sort(key=lambda file: (-file.changed, file.path.name))
    return [file.path.with_suffix("") for file in indices]


def segment_files(folder: Path) -> list[SegmentFile]:
    """The files of all segments in a shelf's folder; other files are passed over.

    >>> segment_files(Path("nowhere"))
    []
    """
    files = []
    with suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            if _SEGMENT.fullmatch(entry.name):
                with suppress(OSError):  # deleted since
                    status = entry.stat()
                    files.append(
                        SegmentFile(
                            path=folder / entry.name,
                            nbytes=status.st_size,
                            changed=status.st_mtime,
                        )
                    )
    return files


def shelf_salt(key: str, record_bytes: int) -> int:
    """What makes the checks of one shelf's entries its own.

    >>> shelf_salt("0" * 32, 4) == shelf_salt("0" * 32, 8)
    False
    """
    return xxhash.xxh3_64_intdigest(f"{FORMAT} {VERSION} {key} {record_bytes}".encode())


def encode_entries(digests: bytes, checksums: Sequence[int], *, first: int, salt: int) -> bytes:
    """Index entries of the records from place ``first`` on.

    >>> len(encode_entries(b"a" * 16 + b"b" * 16, [5, 6], first=0, salt=1))
    64
    """
    words = np.empty((len(checksums), 4), "<u8")
    words[:, :2] = np.frombuffer(digests, "<u8").reshape(-1, 2)
    words[:, 2] = checksums
    words[:, 3] = _check(words, first, salt)
    return words.tobytes()


def decode_entries(raw: bytes, *, first: int, salt: int) -> tuple[Digests, Words, Flags]:
    """Digests and checksums of entries, and which of the entries are whole and belong there.

    >>> raw = encode_entries(b"a" * 16, [5], first=7, salt=1)
    >>> decode_entries(raw, first=7, salt=1)
    (array([b'aaaaaaaaaaaaaaaa'], dtype='|S16'), array([5], dtype=uint64), array([ True]))
    >>> decode_entries(raw, first=8, salt=1)[2]
    array([False])
    """
    words = np.frombuffer(raw, "<u8").reshape(-1, 4)
    digests = np.ascontiguousarray(words[:, :2]).view("S16").reshape(-1)
    return digests, words[:, 2].astype(np.uint64), words[:, 3] == _check(words, first, salt)


def _check(words: Words, first: int, salt: int) -> Words:
    """64 bits of each entry's place, digest and checksum, in a few passes over all entries.

    Every step can be undone, given the words: one word that changed always changes the result.
    """
    mixed = np.arange(first, first + len(words), dtype=np.uint64) ^ np.uint64(salt)
    for column in range(3):
        mixed ^= words[:, column]
        mixed ^= mixed >> np.uint64(30)
        mixed *= _FACTORS[0]
        mixed ^= mixed >> np.uint64(27)
        mixed *= _FACTORS[1]
        mixed ^= mixed >> np.uint64(31)
    return mixed
