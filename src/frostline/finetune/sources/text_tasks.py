"""Text classification and token classification: from a table to samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from frostline.errors import ConfigError, ModelSourceError
from frostline.finetune.sources.base import Note
from frostline.finetune.sources.columns import (
    find_column,
    find_column_if_any,
    lists_of,
    texts_of,
)
from frostline.finetune.sources.labels import Classes, declared_names, resolve_classes
from frostline.finetune.sources.raw import Raw
from frostline.finetune.sources.tasks import Asked, Samples, classes_by_part, positions_by_split
from frostline.finetune.sources.texts import (
    IGNORED,
    Row,
    TokenSamples,
    fields_of,
    length_notes,
    longest_allowed,
    padding_for,
    tokenise,
)


def text_classification(
    raw: Raw, asked: Asked, *, tokenizer: Any, config: Any, known: Mapping[int, str] | None
) -> Samples:
    """A text, or a pair of texts, with a class.

    Args:
        raw: the data.
        asked: what the user said.
        tokenizer: the model's.
        config: the model's.
        known: the classes of the model's head, if it has one for this.

    Raises:
        ConfigError: columns or labels are missing or do not fit.
    """
    text = find_column(raw, "text", asked.columns)
    pair = _pair_column(raw, text, asked.columns)
    classes, numbers = classes_by_part(raw, asked, known)
    limit = longest_allowed(tokenizer, config, asked.max_length)

    def rows_of(part: int) -> list[Row]:
        table = raw.parts[part]
        texts = texts_of(table, text, source=raw.source)
        pairs = texts_of(table, pair, source=raw.source) if pair else None
        chunks = tokenise(tokenizer, texts, pairs, asked.note, truncation=True, max_length=limit)
        fields = (fields_of(each, row) for each in chunks for row in range(len(each["input_ids"])))
        return [
            {**each, "labels": number} for each, number in zip(fields, numbers[part], strict=True)
        ]

    split = positions_by_split(raw, numbers[0], asked, classes.names)
    return _samples(raw, rows_of, split, classes, tokenizer, limit, (text, pair))


def token_classification(
    raw: Raw, asked: Asked, *, tokenizer: Any, config: Any, known: Mapping[int, str] | None
) -> Samples:
    """Lists of words with a tag for each; the first token of a word carries its tag.

    Arguments and errors are those of :func:`text_classification`.
    """
    if not tokenizer.is_fast:
        raise ModelSourceError(
            f"{type(tokenizer).__name__} can't tell which token belongs to which word: token"
            " classification needs a model with a tokenizer.json"
        )
    words, tags = (find_column(raw, role, asked.columns) for role in ("tokens", "tags"))
    tagged = [lists_of(table, tags, source=raw.source) for table in raw.parts]
    classes = resolve_classes(
        [tag for part in tagged for row in part for tag in row],
        source=raw.source,
        declared=declared_names(raw.train, tags),
        known=known,
    )
    limit = longest_allowed(tokenizer, config, asked.max_length)

    def rows_of(part: int) -> list[Row]:
        sentences = lists_of(raw.parts[part], words, source=raw.source)
        _check_lengths(sentences, tagged[part], raw.source)
        return list(_tagged(tokenizer, sentences, tagged[part], classes, limit, asked.note))

    split = positions_by_split(raw, [0] * raw.train.num_rows, asked)
    return _samples(raw, rows_of, split, classes, tokenizer, limit, (words, tags))


def _samples(
    raw: Raw,
    rows_of: Callable[[int], list[Row]],
    split: tuple[Sequence[int], Sequence[int]],
    classes: Classes,
    tokenizer: Any,
    limit: int,
    recipe: tuple[object, ...],
) -> Samples:
    rows = [rows_of(part) for part in range(len(raw.parts))]
    every = [row for part in rows for row in part]
    padding = padding_for(tokenizer, every, limit)
    train, held_out = (
        TokenSamples([part[position] for position in positions], padding)
        for part, positions in zip((rows[0], rows[-1]), split, strict=True)
    )
    return Samples(
        train=train,
        held_out=held_out,
        classes=classes,
        companions=(tokenizer,),
        notes=length_notes([len(row["input_ids"]) for row in every], padding, limit),
        recipe=(*recipe, padding, classes.names, *map(list, split)),
    )


def _pair_column(raw: Raw, text: str, columns: Mapping[str, str]) -> str | None:
    """The second text's column, if the user names one or the names are those of a pair."""
    pair = find_column_if_any(raw, "text_pair", columns)
    is_sure = "text_pair" in columns or text.lower() not in ("content", "review", "body", "message")
    return pair if is_sure and pair != text else None


def _check_lengths(
    sentences: Sequence[list[Any]], tagged: Sequence[list[Any]], source: str
) -> None:
    for row, (words, tags) in enumerate(zip(sentences, tagged, strict=True), 1):
        if len(words) != len(tags):
            raise ConfigError(
                f"data {source!r}, row {row}: {len(words)} words but {len(tags)} tags: each word"
                " needs its tag"
            )
        if not words:
            raise ConfigError(f"data {source!r}, row {row}: no words: remove the row")


def _tagged(
    tokenizer: Any,
    sentences: Sequence[list[str]],
    tagged: Sequence[list[Any]],
    classes: Classes,
    limit: int,
    note: Note,
) -> Iterator[Row]:
    done = 0
    options = {"is_split_into_words": True, "truncation": True, "max_length": limit}
    for encoding in tokenise(tokenizer, sentences, None, note, **options):
        for row in range(len(encoding["input_ids"])):
            numbers = classes.numbers(tagged[done])
            labels, before = [], None
            for word in encoding.word_ids(row):
                is_first = word is not None and word != before
                labels.append(numbers[word] if is_first else IGNORED)
                before = word
            yield {**fields_of(encoding, row), "labels": np.array(labels, dtype=np.int32)}
            done += 1
