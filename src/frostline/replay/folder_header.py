"""The header of a shelf in a folder store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from frostline.errors import ReplayError
from frostline.files import write_atomically
from frostline.replay.folder_format import FORMAT, HEADER_NAME, VERSION

_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a shelf's header says."""

    key: str
    """32 hex digits, also the name of its folder."""
    record_bytes: int
    """Bytes of one record."""
    created: datetime
    """When the shelf was made."""
    note: str
    """What it is, for people."""


def write_header(folder: Path, header: Header) -> None:
    """Write a shelf's header.

    >>> from datetime import timezone
    >>> day = datetime(2026, 1, 2, tzinfo=timezone.utc)
    >>> write_header(Path(), Header(key="0" * 32, record_bytes=4, created=day, note="layer 3"))
    >>> read_header(Path()).note
    'layer 3'

    Raises:
        OutputError: (an OSError) it could not be written.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "key": header.key,
        "record_bytes": header.record_bytes,
        "created": header.created.isoformat(),
        "note": header.note,
    }
    write_atomically(folder / HEADER_NAME, (json.dumps(content, indent=1) + "\n").encode())


def read_header(folder: Path) -> Header | None:
    """The header of the shelf in ``folder``, or None where there is none.

    >>> read_header(Path("nowhere")) is None
    True

    Raises:
        ReplayError: it can't be read, is damaged, or is of another version.
    """
    path = folder / HEADER_NAME
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        version = content["version"]
        if version == VERSION:
            return Header(
                key=_of_type(str, content["key"]),
                record_bytes=_of_type(int, content["record_bytes"]),
                created=datetime.fromisoformat(content["created"]),
                note=_of_type(str, content["note"]),
            )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReplayError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ReplayError(
            f"{str(path)!r} is not the header of a shelf ({error}); delete {str(folder)!r}, or use"
            " another folder as the store"
        ) from error
    raise ReplayError(
        f"{str(path)!r} has version {version!r} of the format, and this Frostline knows {VERSION};"
        f" delete {str(folder)!r}, use another folder, or the Frostline that wrote it"
    )


def _of_type(kind: type[_Value], value: object) -> _Value:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
