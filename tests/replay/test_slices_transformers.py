"""What is kept of transformers' models whose heads read one token."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from replaying import CLASSES, freeze
from torch import nn

import frostline as fl

FLOATS = 4


def _transformer(kind: str, config: str, **settings: Any) -> nn.Module:
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    shape |= {"hidden_size": 32, "num_labels": CLASSES}
    return getattr(transformers, kind)(getattr(transformers, config)(**shape, **settings))


_WORDS = torch.randint(3, 48, (8, 8), generator=torch.Generator().manual_seed(5))
_MASK = (torch.arange(8) < torch.tensor([4, 5, 6, 7, 8, 8, 4, 5])[:, None]).long()


def test_transformers_vit() -> None:
    model = _transformer("ViTForImageClassification", "ViTConfig", image_size=16, patch_size=4)
    freeze(model.train(), "classifier")
    batch = {"pixel_values": torch.randn(8, 3, 16, 16)}
    assert fl.frost_line(model, batch).kept == {"vit": 32 * FLOATS}
    told = {**batch, "output_hidden_states": True}
    assert fl.frost_line(model, told).bytes_per_sample > 17 * 32 * FLOATS


def test_transformers_bert() -> None:
    model = _transformer(
        "BertForSequenceClassification", "BertConfig", vocab_size=50, max_position_embeddings=16
    )
    freeze(model.train(), ("pooler", "classifier"))
    batch = {"input_ids": _WORDS, "attention_mask": _MASK}
    assert fl.frost_line(model, batch).kept == {"bert.encoder": 32 * FLOATS}
    assert fl.frost_line(model.bert, batch).kept == {"encoder": 8 * 32 * FLOATS}


def test_transformers_last_word() -> None:
    """GPT-2's classifier reads another token of each text."""
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, embd_pdrop=0.0, pad_token_id=0
    )
    model = transformers.GPT2ForSequenceClassification(config).train()
    freeze(model, "score")
    line = fl.frost_line(model, {"input_ids": _WORDS * _MASK, "attention_mask": _MASK})
    # It asks the mask, then adds: so the words are kept as well, to see what was added to them.
    kept = {place: size for place, size in line.kept.items() if size}
    assert kept == dict.fromkeys(("transformer.wte", "transformer.ln_f"), 8 * 32 * FLOATS)
