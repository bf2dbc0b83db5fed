"""What the kinds of task have in common: what was asked, and what comes of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.data import Dataset, default_collate

from frostline.errors import ConfigError
from frostline.finetune.sources.base import Note, Saveable
from frostline.finetune.sources.columns import find_column
from frostline.finetune.sources.labels import Classes, declared_names, resolve_classes
from frostline.finetune.sources.raw import Raw
from frostline.finetune.sources.splitting import split_positions


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user said about the data.

    Attributes:
        seed: decides which samples are held out.
        held_out: the share that is held out where the data don't set samples apart.
        columns: from role (``text``, ``label``) to the name of its column.
        max_length: tokens of a sample at most; None for what suits model and data.
        broken: whether broken images are refused or left out.
        note: is told what takes time.
    """

    seed: int
    held_out: float
    columns: Mapping[str, str]
    max_length: int | None
    broken: Literal["refuse", "skip"]
    note: Note


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """The data as a model takes them.

    Attributes:
        train: the samples to train on.
        held_out: the others.
        classes: what they tell apart; None for language modelling.
        collate: makes a batch.
        companions: the tokenizer or image processor that made them.
        notes: what the user should know, a line each.
        recipe: how they were made of the data: with those, it decides every bit.
    """

    train: Dataset[Any]
    held_out: Dataset[Any]
    classes: Classes | None = None
    collate: Callable[[list[Any]], Any] = default_collate
    companions: tuple[Saveable, ...] = ()
    notes: tuple[str, ...] = ()
    recipe: tuple[object, ...] = ()


def classes_by_part(
    raw: Raw, asked: Asked, known: Mapping[int, str] | None
) -> tuple[Classes, list[list[int]]]:
    """The classes, and for each table of ``raw`` the class of each row.

    Raises:
        ConfigError: see :func:`resolve_classes`; or a class is held out alone.
    """
    column = find_column(raw, "label", asked.columns)
    values = [table[column][:] for table in raw.parts]
    declared = declared_names(raw.train, column)
    classes = resolve_classes(
        [value for part in values for value in part],
        source=raw.source,
        declared=declared,
        known=known,
    )
    strange = {*values[-1]} - {*values[0]}
    if strange:
        name = classes.names[classes.number_of[min(strange, key=str)]]
        raise ConfigError(
            f"data {raw.source!r}: class {name!r} is among the held-out samples but not among"
            " those to train on: nothing could learn it"
        )
    return classes, [classes.numbers(part) for part in values]


def positions_by_split(
    raw: Raw, classes: Sequence[int], asked: Asked, names: Sequence[str] = ()
) -> tuple[Sequence[int], Sequence[int]]:
    """Which rows are trained on and which are held out, each of its own table of ``raw``.

    Args:
        raw: the data.
        classes: of the rows of ``raw.train``.
        asked: has share and seed.
        names: of the classes.
    """
    if raw.held_out is not None:
        return range(raw.train.num_rows), range(raw.held_out.num_rows)
    return split_positions(classes, share=asked.held_out, seed=asked.seed, names=names)
