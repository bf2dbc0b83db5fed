"""From digests to rows: millions in little memory, hundreds found at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from frostline.replay.folder_format import Digests
from frostline.replay.records import DIGEST_BYTES

Rows = npt.NDArray[np.int64]

_FEW = 65_536


class DigestTable:
    """The row of each digest; the first one given stays until it is forgotten.

    Sorted arrays for the bulk (24 bytes an entry, where a dict takes 140), and a dict for what
    came since; it is merged into the arrays when it has grown to a quarter of them.

    >>> table = DigestTable()
    >>> table.add(b"a" * 16, 5)
    >>> table.find([b"a" * 16, b"b" * 16])
    [5, -1]
    """

    def __init__(self) -> None:
        self._digests: Digests = np.empty(0, "S16")
        self._rows: Rows = np.empty(0, np.int64)
        self._recent: dict[bytes, int] = {}

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """The row of each digest, -1 where there is none."""
        recent = self._recent
        if not self._digests.size or not digests:
            return [recent.get(digest, -1) for digest in digests]
        rows: list[int] = self._find_sorted(np.frombuffer(b"".join(digests), "S16")).tolist()
        if not recent:
            return rows
        return [
            recent.get(digest, -1) if row < 0 else row
            for digest, row in zip(digests, rows, strict=True)
        ]

    def add(self, digest: bytes, row: int) -> None:
        """Take in one digest that is not known yet."""
        self._recent[digest] = row
        if len(self._recent) > max(_FEW, self._digests.size // 4):
            self._merge(np.empty(0, "S16"), np.empty(0, np.int64))

    def extend(self, digests: Digests, rows: Rows) -> None:
        """Take in those digests that are not known yet; of equal ones, the first."""
        if len(digests) + len(self._recent) > max(_FEW, self._digests.size // 4):
            self._merge(digests, rows)
            return
        # By way of V16: as S16, numpy would drop the zeros at a digest's end.
        named = digests.view(f"V{DIGEST_BYTES}").tolist()
        for digest, row, known in zip(named, rows.tolist(), self.find(named), strict=True):
            if known < 0:
                self._recent.setdefault(digest, row)

    def forget(self, rows: Sequence[int]) -> None:
        """Forget whatever has one of these rows."""
        gone = set(rows)
        self._rows[np.isin(self._rows, list(gone))] = -1
        self._recent = {d: row for d, row in self._recent.items() if row not in gone}

    def _find_sorted(self, digests: Digests) -> Rows:
        places = np.searchsorted(self._digests, digests)
        places[places == self._digests.size] = 0
        return np.where(self._digests[places] == digests, self._rows[places], -1)

    def _merge(self, digests: Digests, rows: Rows) -> None:
        kept = self._rows >= 0
        recent = np.frombuffer(b"".join(self._recent), "S16") if self._recent else digests[:0]
        added = np.fromiter(self._recent.values(), np.int64, len(self._recent))
        # `unique` is stable: of equal digests it takes the first.
        self._digests, first = np.unique(
            np.concatenate([self._digests[kept], recent, digests]), return_index=True
        )
        self._rows = np.concatenate([self._rows[kept], added, rows])[first]
        self._recent = {}
