"""Small random data: what a batch of each kind of model holds."""

from __future__ import annotations

import torch
from torch import Tensor

VOCABULARY = 50
PADDING = 1
"""Token of padded places; the special tokens below 3 appear nowhere else."""


def _ragged(samples: int, length: int) -> tuple[Tensor, Tensor]:
    """Token ids and a mask that is shorter for some samples than for others."""
    mask = torch.arange(length)[None] < torch.randint(length // 2, length + 1, (samples, 1))
    ids = torch.randint(3, VOCABULARY, (samples, length)).masked_fill(~mask, PADDING)
    return ids, mask.long()


def texts(samples: int, *, length: int = 8, classes: int = 2) -> dict[str, Tensor]:
    """Texts of different lengths with a class each."""
    ids, mask = _ragged(samples, length)
    labels = torch.randint(0, classes, (samples,))
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def language(samples: int, *, length: int = 8) -> dict[str, Tensor]:
    """Texts of different lengths whose next tokens are the labels."""
    ids, mask = _ragged(samples, length)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
    }


def unmasked_language(samples: int, *, length: int = 8) -> dict[str, Tensor]:
    """Texts of one length, for models that take no mask."""
    ids = torch.randint(3, VOCABULARY, (samples, length))
    return {"input_ids": ids, "labels": ids.clone()}


def unmasked_texts(samples: int, *, length: int = 8, classes: int = 2) -> dict[str, Tensor]:
    """Texts of one length with a class each."""
    ids = torch.randint(3, VOCABULARY, (samples, length))
    return {"input_ids": ids, "labels": torch.randint(0, classes, (samples,))}


def translations(samples: int, *, length: int = 8) -> dict[str, Tensor]:
    """Texts of different lengths, each with another text as its label."""
    ids, mask = _ragged(samples, length)
    target, seen = _ragged(samples, length - 2)
    labels = target.masked_fill(seen == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def images(samples: int, *, side: int = 32, classes: int = 3) -> dict[str, Tensor]:
    """Pictures with a class each."""
    return {
        "pixel_values": torch.randn(samples, 3, side, side),
        "labels": torch.randint(0, classes, (samples,)),
    }


def sounds(samples: int, *, length: int = 400, classes: int = 2) -> dict[str, Tensor]:
    """Waves of different lengths with a class each."""
    mask = torch.arange(length)[None] < torch.randint(length // 2, length + 1, (samples, 1))
    return {
        "input_values": torch.randn(samples, length) * mask,
        "attention_mask": mask.long(),
        "labels": torch.randint(0, classes, (samples,)),
    }
