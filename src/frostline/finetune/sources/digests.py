"""Digests by which a resumed run notices that its data are no longer the same."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import xxhash

from frostline.errors import ConfigError

_CHUNK_BYTES = 1 << 22


def digest_of(*parts: object) -> str:
    """A digest of the written form of ``parts``, in their order.

    >>> digest_of("a", 1) == digest_of("a", 1), digest_of("a", "b") == digest_of("ab")
    (True, False)
    """
    digest = xxhash.xxh3_128()
    for part in parts:
        text = str(part).encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def digest_of_files(files: Iterable[Path]) -> str:
    """A digest of the content of ``files``, whatever they are called; read in pieces.

    Raises:
        ConfigError: one of them can't be read.
    """
    return digest_of(*map(_digest_of_file, files))


def _digest_of_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ConfigError(f"{path} could not be read: {error.strerror}") from error
    return digest.hexdigest()
