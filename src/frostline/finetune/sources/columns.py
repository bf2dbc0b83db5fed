"""Which columns of a table are the texts, the labels, the words: by name, or as the user says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from frostline.errors import ConfigError
from frostline.finetune.sources.raw import Raw, Table
from frostline.selection.suggest import nearest

USUAL: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "sentence1", "premise", "question1", "content", "review",
             "question", "document", "body", "message", "comment", "tweet", "utterance"),
    "text_pair": ("text_pair", "sentence2", "hypothesis", "question2", "answer", "text2"),
    "label": ("label", "labels", "class", "target", "category", "sentiment", "intent", "emotion"),
    "tokens": ("tokens", "words"),
    "tags": ("ner_tags", "tags", "pos_tags", "labels", "ner", "chunk_tags"),
    "image": ("image", "img", "picture", "pixel_values"),
}  # fmt: skip
"""What the columns are usually called, the likeliest first."""


def find_column(raw: Raw, role: str, columns: Mapping[str, str]) -> str:
    """The name of the column that has a role.

    Args:
        raw: what was found.
        role: a key of :data:`USUAL`.
        columns: what the user says: from role to column.

    Raises:
        ConfigError: there is no such column; the message has the nearest names, and all of them.
    """
    found = find_column_if_any(raw, role, columns)
    if found is None:
        names = raw.train.column_names
        raise ConfigError(
            f"data {raw.source!r} has no column that is known to be the {role} (its columns are"
            f" {', '.join(names)}): say which, as columns: {{{role}: NAME}}"
        )
    return found


def find_column_if_any(raw: Raw, role: str, columns: Mapping[str, str]) -> str | None:
    """The same, but None where the user says nothing and no usual name is there.

    A second text is taken only where the first is called as in a pair, ``sentence1``.
    """
    check_roles(columns)
    names = raw.train.column_names
    if role in columns:
        _check_given(raw, role, columns[role])
        return columns[role]
    lowered = {name.lower(): name for name in reversed(names)}
    taken = set(columns.values())
    found = (lowered[usual] for usual in USUAL[role] if usual in lowered)
    return next((name for name in found if name not in taken), None)


def check_roles(columns: Mapping[str, str]) -> None:
    """Raise ConfigError if the user names a column for a role that there is not."""
    for role in columns:
        if role not in USUAL:
            raise ConfigError(f"columns: there is no {role!r}.{nearest(role, USUAL)}")


def _check_given(raw: Raw, role: str, name: str) -> None:
    for table in raw.parts:
        if name not in table.column_names:
            raise ConfigError(
                f"data {raw.source!r} has no column {name!r} for the {role}."
                f"{nearest(name, table.column_names)}"
            )


def texts_of(table: Table, column: str, *, source: str) -> list[str]:
    """The texts of a column; numbers as they are written.

    Raises:
        ConfigError: a row has no text, or something else.
    """
    values = table[column][:]
    for row, value in enumerate(values, 1):
        if value is None or isinstance(value, list | dict | bytes):
            got = "nothing" if value is None else type(value).__name__
            raise ConfigError(
                f"data {source!r}, row {row}: column {column!r} should be a text, got {got}:"
                " mend or remove the row, or name another column"
            )
    return [value if isinstance(value, str) else str(value) for value in values]


def lists_of(table: Table, column: str, *, source: str) -> list[list[Any]]:
    """The lists of a column.

    Raises:
        ConfigError: a row holds no list.
    """
    values: list[list[Any]] = table[column][:]
    for row, value in enumerate(values, 1):
        if not isinstance(value, list):
            raise ConfigError(
                f"data {source!r}, row {row}: column {column!r} should be a list with an entry for"
                f" each word, got {type(value).__name__}: JSON lines and Parquet can hold lists"
            )
    return values


def has_all(raw: Raw, roles: Iterable[str], columns: Mapping[str, str]) -> bool:
    """Whether each of the roles has a column."""
    return all(find_column_if_any(raw, role, columns) is not None for role in roles)
