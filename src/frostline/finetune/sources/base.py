"""What every source gives a job: a model, what it is trained on, and how the two meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from torch import nn
from torch.utils.data import Dataset

Kind: TypeAlias = Literal[
    "image-classification", "text-classification", "token-classification", "causal-lm", "custom"
]
"""What a model is trained to do; ``custom`` is whatever a user's own code does."""

Note: TypeAlias = Callable[[str], object]
"""Is told, in a line for the user, what is being done while it takes time."""


class Saveable(Protocol):
    """A tokenizer or an image processor."""

    def save_pretrained(self, folder: str) -> object:
        """Write the files from which ``from_pretrained`` makes it again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """What a job trains, and on what.

    Attributes:
        kind: what the model is trained to do.
        model: on the CPU, its pretrained weights loaded, its head sized to the labels; nothing
            is frozen yet.
        train: the samples to train on, by position; the same position gives the same tensors.
        held_out: the samples that no step trains on.
        collate: makes a batch of samples. Of Hugging Face models it is a dict, and
            ``model(**batch)`` has ``.loss`` and ``.logits``; of others a pair of inputs and
            targets, and ``model(inputs)`` gives the logits. Every batch of a source is padded to
            one length, so that what replay has kept of a sample fits each batch that it is in.
        labels: names of the classes, in the order of the logits; empty for causal language models
            and where the source does not tell.
        head: selectors of the part that is the head: what is trained if the user says nothing.
            Empty if there is none that can be named.
        new: names of the parameters that no pretrained weights were found for.
        companions: tokenizer or image processor; each has ``save_pretrained(folder)``.
        base: the folder whose checkpoint the model was loaded from, for ``verify`` and ``merge``;
            None for a model from code.
        notes: what the user should know, a line each.
        identity: a digest of the samples, their split and how they are made into tensors: a run
            that is resumed on anything else can notice.
    """

    kind: Kind
    model: nn.Module
    train: Dataset[Any]
    held_out: Dataset[Any]
    collate: Callable[[list[Any]], Any]
    labels: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    companions: tuple[Saveable, ...] = ()
    base: Path | None = None
    notes: tuple[str, ...] = ()
    identity: str = ""
