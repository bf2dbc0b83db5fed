"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from frostline.errors import OutputError


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``; after a failure or a crash the old file is still there.

    Raises:
        OutputError: (an OSError) no permission, a full disk, a missing folder.
    """
    replace_atomically(path, lambda temporary: _write_through(temporary, content))


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a temporary file beside ``path``, then put it in ``path``'s place.

    Raises:
        OutputError: (an OSError) the file could not be written; nothing is left behind.
    """
    try:
        # In the target's folder, since a rename is atomic only within one file system.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise OutputError(_message(path, error)) from error
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(_message(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _umask() -> int:
    # mkstemp makes a private file; the result should have the permissions of any other file.
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _message(path: Path, error: OSError) -> str:
    return (
        f"cannot write {str(path)!r}: {error.strerror or error}; free some space, or choose"
        " another place that you may write to"
    )
