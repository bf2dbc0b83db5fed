"""Data by name: which of the readers is meant, and what it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostline.errors import ConfigError
from frostline.finetune.sources import images, tables
from frostline.finetune.sources.digests import digest_of
from frostline.finetune.sources.extras import require
from frostline.finetune.sources.hub import fetch_data, is_hub_name
from frostline.finetune.sources.nearby import suggesting
from frostline.finetune.sources.raw import Raw
from frostline.finetune.sources.splitting import choose_splits
from frostline.finetune.sources.tasks import Asked

_SAVED = ("dataset_dict.json", "state.json")
"""What ``datasets`` leaves in a folder that it saved to disk."""


def read_data(source: str, asked: Asked) -> Raw:
    """Read what ``source`` names.

    Args:
        source: a folder of images by class; a CSV, TSV, JSON lines, Parquet or text file or a
            folder of them; a folder that ``datasets`` saved; or a data set of the hub.
        asked: what the user said.

    Raises:
        ConfigError: there is no such thing, it is empty, or damaged.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() not in tables.SUFFIXES:
            raise ConfigError(
                f"data {source!r}: {path.suffix or 'such'} files are not read; expected one of"
                f" {', '.join(tables.SUFFIXES)}, a folder, or data.py:factory"
            )
        return tables.read_tables(source, [path])
    if path.is_dir():
        return _read_folder(source, path, asked)
    looks_like_path = source.startswith((".", "/", "~")) or path.suffix in tables.SUFFIXES
    with suggesting(source):
        if looks_like_path or not is_hub_name(source.partition(":")[0]):
            raise ConfigError(f"data {source!r}: there is no such file or folder")
        found = fetch_data(source, asked.note)
    return _chosen(source, found)


def _read_folder(source: str, folder: Path, asked: Asked) -> Raw:
    if any((folder / name).is_file() for name in _SAVED):
        datasets = require("datasets", reason=f"data {source!r}")
        try:
            saved = datasets.load_from_disk(str(folder))
        except Exception as error:  # Arrow's and the operating system's, by the kind of damage
            raise ConfigError(
                f"data {source!r} was saved by datasets, but does not load: {error}"
            ) from error
        return _chosen(source, saved)
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in tables.SUFFIXES and not path.name.startswith((".", "README"))
    ]
    if files and not images.has_images(folder):
        return tables.read_tables(source, files)
    return images.read_image_folder(folder, broken=asked.broken, note=asked.note)


def _chosen(source: str, found: Any) -> Raw:
    """The splits to train on and to hold out, of a ``datasets`` data set."""
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    train, held_out = choose_splits(splits)
    if train is None:
        train = next(iter(splits))
        held_out = None if held_out == train else held_out
    used = [name for name in (train, held_out) if name]
    for name in used:
        if len(splits[name]) == 0:
            raise ConfigError(f"data {source!r}: its split {name!r} is empty")
    unused = [name for name in splits if name not in used]
    return Raw(
        source=source,
        train=splits[train],
        held_out=splits[held_out] if held_out else None,
        digest=digest_of(*((name, splits[name]._fingerprint) for name in used)),
        notes=(f"not used of {source}: {', '.join(unused[:5])}",) if unused else (),
    )
