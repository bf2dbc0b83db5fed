"""Causal language modelling: all texts one after the other, cut into blocks of one length."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from frostline.errors import ConfigError
from frostline.finetune.sources.base import Note
from frostline.finetune.sources.columns import find_column, texts_of
from frostline.finetune.sources.raw import Raw, Table
from frostline.finetune.sources.tasks import Asked, Samples
from frostline.finetune.sources.texts import longest_allowed, tokenise

_PIECE_CHARACTERS = 100_000


class TokenBlocks(Dataset[dict[str, Tensor]]):
    """Blocks of tokens, each its own target: models shift the labels themselves.

    Args:
        tokens: int32 of shape (tokens,).
        length: tokens of a block; what is left over at the end is not used.

    >>> blocks = TokenBlocks(torch.arange(7), 3)
    >>> len(blocks), blocks[1]["labels"]
    (2, tensor([3, 4, 5]))
    """

    def __init__(self, tokens: Tensor, length: int) -> None:
        self._blocks = tokens[: len(tokens) // length * length].view(-1, length)

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        block = self._blocks[index].long()
        return {"input_ids": block, "labels": block.clone()}


def causal_lm(raw: Raw, asked: Asked, *, tokenizer: Any, config: Any) -> Samples:
    """Pack the texts into blocks; the last blocks are held out where the data set none apart.

    Args:
        raw: the data.
        asked: what the user said; ``max_length`` is the length of a block.
        tokenizer: the model's.
        config: the model's.

    Raises:
        ConfigError: there is no column of texts, or too little text.
    """
    column = find_column(raw, "text", asked.columns)
    length = longest_allowed(tokenizer, config, asked.max_length)
    streams = [_stream(tokenizer, table, column, raw.source, asked.note) for table in raw.parts]
    notes: tuple[str, ...] = ()
    if raw.held_out is None:
        (tokens,) = streams
        blocks = len(tokens) // length
        # Not drawn by chance: a block's neighbours would tell what is in it.
        held = min(max(1, round(blocks * asked.held_out)), blocks - 1)
        _check_enough(tokens, length, raw.source, needed=2)
        cut = (blocks - held) * length
        streams = [tokens[:cut], tokens[cut:]]
        notes = (f"held out: the last {held} of {blocks} blocks of {length} tokens",)
    for tokens in streams:
        _check_enough(tokens, length, raw.source, needed=1)
    train, held_out = (TokenBlocks(tokens, length) for tokens in streams)
    return Samples(
        train=train,
        held_out=held_out,
        companions=(tokenizer,),
        notes=notes,
        recipe=(column, length, len(train), len(held_out)),
    )


def _stream(tokenizer: Any, table: Table, column: str, source: str, note: Note) -> Tensor:
    """All texts as one row of tokens, the end-of-text token after each."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    pieces, is_last = [], []
    for text in texts_of(table, column, source=source):
        own = list(_pieces(text))
        pieces += own
        is_last += [False] * (len(own) - 1) + [True] * bool(own)
    parts: list[Tensor] = []
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    for encoding in tokenise(tokenizer, pieces, None, note, **options):
        for ids in encoding["input_ids"]:
            ending = end if is_last[len(parts)] else []
            parts.append(torch.tensor([*ids, *ending], dtype=torch.int32))
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end with a line where they can: tokenizers slow down on long ones."""
    start = 0
    while start < len(text):
        end = min(start + _PIECE_CHARACTERS, len(text))
        if end < len(text):
            line = re.compile(r"\n(?=\S)").search(text, end, end + _PIECE_CHARACTERS)
            end = line.end() if line else end
        yield text[start:end]
        start = end


def _check_enough(tokens: Sequence[Any] | Tensor, length: int, source: str, *, needed: int) -> None:
    if len(tokens) < needed * length:
        shorter = max(8, len(tokens) // (needed * 8))
        raise ConfigError(
            f"data {source!r} has {len(tokens)} tokens, too few for {needed} blocks of {length}:"
            f" give more text, or a smaller max_length, such as {shorter}"
        )
