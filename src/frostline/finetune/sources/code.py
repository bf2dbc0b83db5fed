"""Models and data from a user's own code, ``file.py:factory``."""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, IterableDataset, Subset, default_collate

from frostline.errors import ConfigError, ModelSourceError
from frostline.finetune.blame import describe
from frostline.finetune.models import find_attribute, import_file, importable
from frostline.finetune.sources.labels import Classes
from frostline.finetune.sources.splitting import split_positions
from frostline.finetune.sources.tasks import Asked, Samples


def is_code(source: str) -> bool:
    """Whether ``source`` has the form of a factory in a file.

    >>> is_code("data.py:build"), is_code("data.csv"), is_code("glue:sst2")
    (True, False, False)
    """
    return ".py:" in source or source.endswith(".py")


def load_data(source: str, asked: Asked) -> Samples:
    """Call the factory: it gives a data set, or one to train on and one to hold out.

    A data set may have a function ``collate_fn`` that makes batches, and a list ``classes`` with
    the classes' names.

    Args:
        source: ``file.py:factory``.
        asked: has share and seed of what is held out where the factory gives one data set.

    Raises:
        ConfigError: there is no such file or factory, it raised, or what it gave is no data set.
    """
    place, _, factory = source.rpartition(":")
    file = Path(place)
    if not place or not file.is_file():
        raise ConfigError(
            f"data {source!r}: there is no file {place or source} with a factory to call: expected"
            " path/data.py:build"
        )
    try:
        with importable(file.parent):
            build = find_attribute(import_file(file), factory, place)
            given = _called(build, source)
    except ModelSourceError as error:
        raise ConfigError(f"data {source!r}: {error}") from error
    train, held_out = _split(given, source, asked)
    whole: Any = given[0] if isinstance(given, tuple) else given
    names = tuple(map(str, getattr(whole, "classes", None) or ()))
    classes = Classes(names=names, number_of={}, is_models=False) if names else None
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Samples(
        train=train,
        held_out=held_out,
        classes=classes,
        collate=getattr(whole, "collate_fn", None) or default_collate,
        recipe=(digest, factory, *map(len, (train, held_out)), asked.seed),
    )


def _called(build: object, source: str) -> Any:
    if not callable(build):
        raise ConfigError(
            f"data {source!r} is of type {type(build).__name__}: name a function that takes nothing"
            " and gives a torch Dataset"
        )
    try:
        return build()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"data {source!r} raised {describe(error)}") from error


def _split(given: Any, source: str, asked: Asked) -> tuple[Any, Any]:
    if isinstance(given, tuple) and len(given) == 2:
        for part in given:
            _check(part, source)
        return given
    _check(given, source)
    kept, held = split_positions([0] * len(given), share=asked.held_out, seed=asked.seed)
    return Subset(given, kept), Subset(given, held)


def _check(part: object, source: str) -> None:
    is_map_style = isinstance(part, Sized) and hasattr(part, "__getitem__")
    if isinstance(part, IterableDataset) or not (is_map_style or isinstance(part, Dataset)):
        raise ConfigError(
            f"data {source!r} should return a data set with __len__ and __getitem__, or a pair"
            f" (train, held out), got {type(part).__name__}"
        )
    if not isinstance(part, Sized) or len(part) == 0:
        raise ConfigError(f"data {source!r} gave an empty {type(part).__name__}")
