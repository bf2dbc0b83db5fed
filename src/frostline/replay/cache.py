"""What a folder store holds, for people, and how to get its room back."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from frostline.errors import OutputError, ReplayError
from frostline.replay.folder_disk import measure_shelf
from frostline.replay.folder_format import (
    HEADER_NAME,
    segment_files,
    shelf_folders,
)
from frostline.replay.folder_header import read_header

# What a process that was killed while it wrote a header leaves (frostline.files).
_LEFT_BEHIND = re.compile(rf"\.{re.escape(HEADER_NAME)}\..+\.tmp")


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One shelf of a folder store: what is kept of one place in one model."""

    key: str
    """32 hex digits, also the name of its folder."""
    entries: int
    """Number of its records."""
    nbytes: int
    """Bytes on the disk."""
    created: datetime
    """When it was made, in UTC."""
    last_used: datetime
    """When it was last opened or written to, in UTC."""
    note: str
    """What it is."""


def list_entries(folder: str | Path) -> list[CacheEntry]:
    """The shelves in a folder, the last used first. What is no shelf of this version is left out.

    Raises:
        ReplayError: there is no such folder.

    >>> from frostline.replay.folder_store import FolderStore
    >>> _ = FolderStore("features").shelf("0" * 32, record_bytes=4, note="layer 3")
    >>> [(entry.key[:4], entry.entries, entry.note) for entry in list_entries("features")]
    [('0000', 0, 'layer 3')]
    """
    root = _existing(folder)
    found = [entry for path in shelf_folders(root) if (entry := _entry(path)) is not None]
    return sorted(found, key=lambda entry: (entry.last_used, entry.key), reverse=True)


def clear(folder: str | Path, older_than: timedelta | None = None) -> int:
    """Delete the shelves in a folder, or those not used for ``older_than``; bytes that it freed.

    Deletes the files that a store has written and nothing else. A run that is using the store
    goes on, and records nothing more.

    Raises:
        ReplayError: the folder is missing, or has files, but no shelf that Frostline can read.
        OutputError: (an OSError) a file could not be deleted.

    >>> from frostline.replay.folder_store import FolderStore
    >>> _ = FolderStore("features").shelf("0" * 32, record_bytes=4)
    >>> clear("features") > 0, list_entries("features")
    (True, [])
    """
    root = _existing(folder)
    entries = list_entries(root)
    if not entries and any(root.iterdir()):
        raise ReplayError(
            f"{str(root)!r} has no shelf of a Frostline store, so nothing in it was deleted"
        )
    now = datetime.now(timezone.utc)
    old = [entry for entry in entries if older_than is None or now - entry.last_used > older_than]
    try:
        return sum(_delete(root / entry.key) for entry in old)
    except OSError as error:
        raise OutputError(f"cannot clear {str(root)!r}: {error}") from error


def _existing(folder: str | Path) -> Path:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ReplayError(f"there is no folder {str(root)!r}")
    return root


def _entry(folder: Path) -> CacheEntry | None:
    try:
        header = read_header(folder)
        if header is None or header.key != folder.name:
            return None
        used = (folder / HEADER_NAME).stat().st_mtime
    except (ReplayError, OSError):
        return None
    nbytes, entries = measure_shelf(folder)
    used = max([used, *(file.changed for file in segment_files(folder))])
    return CacheEntry(
        key=header.key,
        entries=entries,
        nbytes=nbytes,
        created=header.created,
        last_used=datetime.fromtimestamp(used, timezone.utc),
        note=header.note,
    )


def _delete(folder: Path) -> int:
    files = [(file.path, file.nbytes) for file in segment_files(folder)]
    files += [(p, 0) for p in folder.iterdir() if _LEFT_BEHIND.fullmatch(p.name)]
    # The header last: after an interruption this is still a shelf, which can be cleared.
    header = folder / HEADER_NAME
    files.append((header, header.stat().st_size))
    for path, _ in files:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()  # stays where it holds files of somebody else
    return sum(nbytes for _, nbytes in files)
