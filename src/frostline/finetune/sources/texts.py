"""Texts as a model takes them: tokenised once, padded to one length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from frostline.errors import ConfigError
from frostline.finetune.sources.base import Note
from frostline.units import format_number_of

Row: TypeAlias = Mapping[str, Any]

_CHUNK = 1000
_WORTH_A_NOTE = 20_000
_LONGEST = 512
"""Tokens of a sample if neither the user nor the model says less."""
_STEP = 8
"""Padded lengths are multiples: kernels are faster, and replay's bits do not hang on the tail."""
IGNORED = -100
"""The label that Hugging Face's models leave out of the loss."""


@dataclass(frozen=True, kw_only=True)
class Padding:
    """How samples get one length.

    Attributes:
        length: tokens of each sample.
        values: for each field, what it is filled up with.
        on_left: whether the filling comes first.
    """

    length: int
    values: Mapping[str, int]
    on_left: bool


class TokenSamples(Dataset[dict[str, Tensor]]):
    """Tokenised samples as dicts of int64 tensors, each of the padding's length.

    Args:
        rows: for each sample its fields: arrays of numbers, or one number (a class).
        padding: how lists are filled up.

    >>> padding = Padding(length=4, values={"input_ids": 0}, on_left=False)
    >>> TokenSamples([{"input_ids": np.array([5, 6, 7]), "labels": 1}], padding)[0]
    {'input_ids': tensor([5, 6, 7, 0]), 'labels': tensor(1)}
    """

    def __init__(self, rows: Sequence[Row], padding: Padding) -> None:
        self._padding = padding
        self._columns = {name: _Column([row[name] for row in rows]) for name in rows[0]}
        self._count = len(rows)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: self._filled(name, index) for name in self._columns}

    def _filled(self, name: str, index: int) -> Tensor:
        values = self._columns[name][index].long()
        if not values.dim():
            return values
        missing = self._padding.length - len(values)
        ends = (missing, 0) if self._padding.on_left else (0, missing)
        return torch.nn.functional.pad(values, ends, value=self._padding.values[name])


class _Column:
    """Arrays of different lengths in one flat tensor, or one number for each sample."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._ends: Tensor | None = None
        if isinstance(values[0], int):
            self._flat = torch.tensor(values)
            return
        self._ends = torch.tensor([len(each) for each in values]).cumsum(0)
        self._flat = torch.from_numpy(np.concatenate(values).astype(np.int32, copy=False))

    def __getitem__(self, index: int) -> Tensor:
        if self._ends is None:
            return self._flat[index]
        start = int(self._ends[index - 1]) if index else 0
        return self._flat[start : int(self._ends[index])]


def longest_allowed(tokenizer: Any, config: Any, max_length: int | None) -> int:
    """Tokens of a sample at most.

    Args:
        tokenizer: knows what it was trained for.
        config: the model's; knows how many positions it has.
        max_length: what the user says.

    Raises:
        ConfigError: the user says more than the model has positions for.
    """
    positions: int | None = getattr(config, "max_position_embeddings", None) or None
    # RoBERTa and its kin number positions from behind the padding token's.
    if positions and getattr(config, "model_type", "") in _OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    if max_length is None:
        return min(int(tokenizer.model_max_length), positions or _LONGEST, _LONGEST)
    if positions and max_length > positions:
        raise ConfigError(
            f"max_length {max_length} is more than the {positions} positions of the model: give at"
            f" most {positions}"
        )
    return max_length


_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "longformer", "data2vec-text", "mpnet")


def tokenise(
    tokenizer: Any, texts: Sequence[Any], pairs: Sequence[Any] | None, note: Note, **options: Any
) -> Iterator[Any]:
    """Encodings of ``texts`` (with ``pairs``), a chunk at a time."""
    if len(texts) >= _WORTH_A_NOTE:
        note(f"tokenising {format_number_of(len(texts), 'text')}")
    for start in range(0, len(texts), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield tokenizer(texts[part], None if pairs is None else pairs[part], **options)


def fields_of(encoding: Any, row: int) -> dict[str, Any]:
    """The fields of one text of a chunk, as arrays."""
    return {name: np.asarray(rows[row], dtype=np.int32) for name, rows in encoding.items()}


def padding_for(tokenizer: Any, rows: Sequence[Row], limit: int) -> Padding:
    """The padding that suits all ``rows``: to the longest of them, a multiple of eight.

    Args:
        tokenizer: knows the side, and the number that stands for padding.
        rows: of all splits, none longer than ``limit``.
        limit: the length that must not be passed.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    values = {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "attention_mask": 0,
        "labels": IGNORED,
    }
    return Padding(
        length=min(-(-longest // _STEP) * _STEP, limit),
        values=values,
        on_left=tokenizer.padding_side == "left",
    )


def length_notes(lengths: Sequence[int], padding: Padding, limit: int) -> tuple[str, ...]:
    """What a user should know who could choose another length."""
    notes = []
    cut = sum(length >= limit for length in lengths)
    if cut:
        notes.append(
            f"{cut} of {format_number_of(len(lengths), 'sample')} reach {limit} tokens and are cut"
            " there: max_length sets where"
        )
    usual = sorted(lengths)[int(0.95 * (len(lengths) - 1))]
    if padding.length >= 2 * usual:
        notes.append(
            f"every sample is padded to {padding.length} tokens, though 95% have at most {usual}:"
            f" max_length: {-(-usual // _STEP) * _STEP} would save most of the time"
        )
    return tuple(notes)
