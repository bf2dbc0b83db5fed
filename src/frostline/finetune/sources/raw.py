"""Samples as they lie in the data, before a model's tokenizer or image processor has seen them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

Table: TypeAlias = Any
"""A ``datasets.Dataset``; that package ships no type information."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Raw:
    """What was found at the place that the user named.

    Attributes:
        source: the place, for messages.
        train: the samples to train on, and those to hold out too where ``held_out`` is None.
        held_out: the samples to hold out, where the data set them apart.
        digest: of the content.
        notes: what the user should know, a line each.
    """

    source: str
    train: Table
    held_out: Table | None
    digest: str
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> list[Table]:
        """The tables that there are."""
        return [self.train] if self.held_out is None else [self.train, self.held_out]
