"""One shelf of a folder store: everybody's segments are read, one's own is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from frostline.replay.digest_table import DigestTable, Rows
from frostline.replay.folder_disk import Disk, Pace
from frostline.replay.folder_format import ENTRY_BYTES, segment_stems, shelf_salt
from frostline.replay.folder_segment import Segment
from frostline.replay.folder_writer import SegmentWriter
from frostline.replay.limits import StoreDamaged
from frostline.replay.mapped_files import Bytes
from frostline.replay.records import check_digests, check_records, new_records

# A row is the segment's number, then the place in the segment.
_PLACE_BITS = 40
_FLUSH_BYTES = 2**20


class FolderShelf:
    """One shelf of a :class:`~frostline.replay.folder_store.FolderStore`, which makes it.

    >>> import torch
    >>> from frostline.replay.folder_store import FolderStore
    >>> shelf = FolderStore(Path("features")).shelf("0" * 32, record_bytes=2)
    >>> shelf.add([b"a" * 16, b"b" * 16], torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8))
    >>> shelf.read(shelf.find([b"b" * 16]))
    tensor([[3, 4]], dtype=torch.uint8)
    """

    def __init__(self, disk: Disk, key: str, record_bytes: int) -> None:
        self.record_bytes = record_bytes
        self._disk = disk
        self._folder = disk.root / key
        self._salt = shelf_salt(key, record_bytes)
        self._table = DigestTable()
        self._segments: list[Segment] = []
        self._numbers: dict[Path, int] = {}
        self._writer: SegmentWriter | None = None
        self._pace = Pace()
        self._look()

    @property
    def nbytes(self) -> int:
        """Bytes of the shelf's records and their entries, as far as this process knows them."""
        with self._entered():
            count = sum(segment.count for segment in self._segments)
            buffered = self._writer.buffered if self._writer else 0
            return count * (self.record_bytes + ENTRY_BYTES) + buffered

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """The row of each digest, -1 where there is none.

        For digests that are not known it looks, now and then, what other processes have added.
        """
        with self._entered():
            rows = self._table.find(digests)
            if -1 in rows and self._pace.due():
                with self._pace.round():
                    self._look()
                rows = self._table.find(digests)
            return rows

    def add(self, digests: Sequence[bytes], records: Tensor) -> None:
        """Keep ``records`` (uint8 [n, record_bytes], CPU); digests that are known are passed over.

        Raises:
            ReplayError: the records do not have that shape, or a digest has not 16 bytes.
        """
        values = check_records(digests, records, self.record_bytes)
        check_digests(digests)
        with self._entered():
            rows = self._table.find(digests)
            fresh = {digest: i for i, digest in enumerate(digests) if rows[i] < 0}
            more = len(fresh) * (self.record_bytes + ENTRY_BYTES)
            if not fresh or not self._disk.admits(more):
                return
            self._append(list(fresh), values[list(fresh.values())])
            self._disk.buffered += more
            if self._writer and self._writer.buffered >= _FLUSH_BYTES:
                self._flush()

    def read(self, rows: Sequence[int]) -> Tensor:
        """The records of ``rows``: uint8 [n, record_bytes], in memory of their own.

        Raises:
            StoreDamaged: one is not what was written. It is forgotten: ``find`` says -1 now.
            IndexError: a row that ``find`` never gave.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        records = new_records(len(wanted), self.record_bytes)
        with self._entered():
            numbers = wanted >> _PLACE_BITS
            if wanted.size and not 0 <= numbers.min() <= numbers.max() < len(self._segments):
                raise IndexError(f"there are no such rows: {rows}")
            damaged = self._read(numbers, wanted & ((1 << _PLACE_BITS) - 1), records.numpy())
            if damaged:
                self._table.forget(damaged)
                raise StoreDamaged(
                    f"{len(damaged)} of {len(wanted)} records in {str(self._folder)!r} are not what"
                    " was written; they are computed and recorded again"
                )
        return records

    def flush(self) -> None:
        """Write out what is buffered; if the disk takes no more, that is said once.

        The next digest that is not known is looked for on the disk at once: an epoch has ended,
        for other processes too.
        """
        with self._entered():
            self._flush()
            self._pace = Pace()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        with self._disk.lock():
            if self._writer is not None and self._writer.pid != os.getpid():
                # Forked: the parent writes what it has buffered, in the segment that is its own.
                self._abandon(self._writer)
            yield

    def _look(self) -> None:
        """Take in what anybody has written since the last look."""
        for stem in segment_stems(self._folder):
            self._scan(self._number(stem))

    def _number(self, stem: Path) -> int:
        if stem not in self._numbers:
            self._numbers[stem] = len(self._segments)
            self._segments.append(Segment(stem, record_bytes=self.record_bytes, salt=self._salt))
        return self._numbers[stem]

    def _scan(self, number: int) -> None:
        digests, places = self._segments[number].scan()
        if len(digests):
            self._table.extend(digests, places + (number << _PLACE_BITS))

    def _read(self, numbers: Rows, places: Rows, records: Bytes) -> list[int]:
        damaged = []
        for number in np.unique(numbers).tolist():
            segment = self._segments[number]
            chosen = np.flatnonzero(numbers == number)
            if places[chosen].max() >= segment.count:
                self._flush()
            # Straight into place where one segment has them all, as after a run of one process.
            whole = len(chosen) == len(numbers)
            target = records if whole else np.empty_like(records[: len(chosen)])
            bad = segment.read(places[chosen], target, self._disk.files)
            if not whole:
                records[chosen] = target
            damaged += [place + (number << _PLACE_BITS) for place in bad]
        return damaged

    def _append(self, digests: list[bytes], values: Bytes) -> None:
        if self._writer is None:
            self._writer = SegmentWriter(
                self._folder, record_bytes=self.record_bytes, salt=self._salt
            )
        number = self._number(self._writer.stem)
        first = self._writer.append(digests, values) + (number << _PLACE_BITS)
        for row, digest in enumerate(digests, first):
            self._table.add(digest, row)

    def _flush(self) -> None:
        writer = self._writer
        if writer is None or not writer.digests:
            return
        # Only a flush that ends well leaves a segment to append to: after one that failed or was
        # interrupted, what lies at its end is not known.
        self._writer = None
        end = writer.end
        self._disk.flushes(writer.buffered)
        failure: OSError | None = None
        try:
            writer.flush()
            self._writer = writer
        except OSError as error:
            failure = error
        number = self._numbers[writer.stem]
        self._scan(number)
        self._forget_from_count_to(end, number)
        if failure is not None:
            self._disk.fail(self._folder, failure)

    def _abandon(self, writer: SegmentWriter) -> None:
        self._writer = None
        self._disk.buffered -= writer.buffered
        self._forget_from_count_to(writer.end, self._numbers[writer.stem])

    def _forget_from_count_to(self, end: int, number: int) -> None:
        """Forget the places of a segment that never came to the disk."""
        first = number << _PLACE_BITS
        missing = range(first + self._segments[number].count, first + end)
        if missing:
            self._table.forget(missing)
