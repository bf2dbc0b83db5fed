"""Whether images are whole: decoded once, and remembered by size and time of change."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from frostline.errors import OutputError
from frostline.files import write_atomically
from frostline.finetune.pretrain import cache_folder
from frostline.finetune.sources.base import Note
from frostline.finetune.sources.digests import digest_of
from frostline.finetune.sources.extras import require
from frostline.units import format_number_of

_FOLDER = "images"


@dataclass(frozen=True, kw_only=True)
class ImageChecks:
    """What the check found.

    Attributes:
        digest: of the content and relative paths of all images.
        broken: those that can't be decoded, with the reason.
    """

    digest: str
    broken: tuple[tuple[Path, str], ...]


def check_images(paths: Sequence[Path], root: Path, note: Note) -> ImageChecks:
    """Decode every image that was not seen before as it is now.

    Args:
        paths: of the images, below ``root``.
        root: the folder by which the results are remembered.
        note: is told before the pass.
    """
    pillow = require("PIL.Image", reason="an image folder")
    memory = _memory_of(root)
    known = _recall(memory)
    keys = {path: _key(path, root) for path in paths}
    fresh = [path for path in paths if keys[path] not in known]
    if fresh:
        note(f"checking {format_number_of(len(fresh), 'image')} in {root}")
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders let go of the interpreter
            results = pool.map(lambda path: _check(path, pillow), fresh)
            known |= {keys[path]: result for path, result in zip(fresh, results, strict=True)}
        _remember(memory, {keys[path]: known[keys[path]] for path in paths})
    results_of = [(path, known[keys[path]]) for path in paths]
    return ImageChecks(
        digest=digest_of(*((path.relative_to(root), digest) for path, (digest, _) in results_of)),
        broken=tuple((path, reason) for path, (_, reason) in results_of if reason),
    )


def _check(path: Path, pillow: Any) -> list[str]:
    """The digest of the file, and why it is broken; "" if it is not."""
    try:
        digest = xxhash.xxh3_64_hexdigest(path.read_bytes())
    except OSError as error:
        return ["", error.strerror or str(error)]
    try:
        with pillow.open(path) as image:
            # A JPEG is read whole but computed at an eighth of its size.
            image.draft("RGB", (32, 32))
            image.load()
    except pillow.UnidentifiedImageError:
        return [digest, "no image" if path.stat().st_size else "empty"]
    except Exception as error:  # what decoders raise on damage: OSError, SyntaxError, struct.error
        return [digest, str(error) or type(error).__name__]
    return [digest, ""]


def _key(path: Path, root: Path) -> str:
    stat = path.stat()
    return f"{path.relative_to(root)}|{stat.st_size}|{stat.st_mtime_ns}"


def _memory_of(root: Path) -> Path | None:
    try:
        return cache_folder() / _FOLDER / f"{digest_of(root.resolve())}.json"
    except RuntimeError:  # no home: check each time
        return None


def _recall(memory: Path | None) -> dict[str, list[str]]:
    if memory is None:
        return {}
    try:
        found = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(memory: Path | None, results: dict[str, list[str]]) -> None:
    if memory is None:
        return
    # Without it the next run checks again, no more.
    with contextlib.suppress(OSError, OutputError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, json.dumps(results).encode())
