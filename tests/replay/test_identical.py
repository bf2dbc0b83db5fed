"""Losses, weights and random numbers are those of the run without replay, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import frostline as fl
from replaying import CLASSES, HEAD, LAST_TWO, Net, Pairs, both, freeze, net, steps

# Transformers' models, small: name → maker, and what trains for the head alone and the last two
# blocks.


def _transformer(kind: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        return getattr(transformers, kind)(getattr(transformers, config)(**settings))

    return make


_vit = _transformer(
    "ViTForImageClassification",
    "ViTConfig",
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    image_size=16,
    patch_size=4,
    num_labels=CLASSES,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)
_resnet = _transformer(
    "ResNetForImageClassification",
    "ResNetConfig",
    embedding_size=16,
    hidden_sizes=[16, 16, 32, 32],
    depths=[1, 1, 1, 1],
    num_labels=CLASSES,
)
_bert = _transformer(
    "BertForSequenceClassification",
    "BertConfig",
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
    num_labels=CLASSES,
)


def _gpt2(*, is_tied: bool) -> Callable[[], nn.Module]:
    return _transformer(
        "GPT2LMHeadModel",
        "GPT2Config",
        vocab_size=48,
        n_embd=32,
        n_layer=4,
        n_head=4,
        n_positions=16,
        tie_word_embeddings=is_tied,
    )


_MODELS: dict[str, tuple[Callable[[], nn.Module], str, dict[str, str | tuple[str, ...]]]] = {
    "vit": (_vit, "pixels", {"head": "classifier", "two": ("layers.2", "layers.3", "classifier")}),
    "resnet": (_resnet, "pixels", {"head": "classifier", "two": ("stages.2", "stages.3", "classifier")}),
    "bert": (
        _bert,
        "words",
        {"head": ("classifier", "pooler"), "two": ("layer.2", "layer.3", "pooler", "classifier")},
    ),
    "gpt2": (_gpt2(is_tied=False), "text", {"head": "lm_head", "two": ("h.2", "h.3", "ln_f", "lm_head")}),
    "gpt2-tied": (_gpt2(is_tied=True), "text", {"head": "ln_f", "two": ("h.2", "h.3", "ln_f")}),
}


class Words(torch.utils.data.Dataset):
    """Fields of one kind, as a tokenizer or an image processor gives them."""

    def __init__(self, kind: str, size: int = 28) -> None:
        torch.manual_seed(5)
        self.kind, self.size = kind, size
        self.pixels = torch.randn(size, 3, 16, 16)
        self.words = torch.randint(3, 48, (size, 8))
        self.mask = (torch.arange(8) < torch.randint(4, 9, (size, 1))).long()
        self.labels = torch.randint(CLASSES, (size,))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if self.kind == "pixels":
            return {"pixel_values": self.pixels[index], "labels": self.labels[index]}
        fields = {"input_ids": self.words[index], "attention_mask": self.mask[index]}
        if self.kind == "words":
            return {**fields, "labels": self.labels[index]}
        return {**fields, "labels": self.words[index]}


def _own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def _loop(model: nn.Module, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
    return steps(model, optimizer, loader, batches, loss_of=_own_loss)


_RUNS: dict[str, dict[str, Any]] = {
    "memory": {},
    "memory-workers": {"num_workers": 2},
    "folder": {"is_folder": True},
    "folder-workers-skip": {"is_folder": True, "num_workers": 2, "inputs": "skip"},
}


@pytest.mark.parametrize("how", _RUNS)
@pytest.mark.parametrize("cut", ["head", "two"])
@pytest.mark.parametrize("name", _MODELS)
def test_transformers_train_to_the_same_bits(
    name: str, cut: str, how: str, tmp_path: Path
) -> None:
    make, kind, cuts = _MODELS[name]
    options = dict(_RUNS[how])
    workers = options.pop("num_workers", 0)
    if options.pop("is_folder", False):
        options["store"] = tmp_path / "features"

    def frozen() -> nn.Module:
        model = make()
        freeze(model, cuts[cut])
        return model

    done = both(
        frozen,
        lambda: DataLoader(Words(kind), batch_size=8, shuffle=True, num_workers=workers),
        _loop,
        **options,
    )
    assert done.replayer.declined is None
    recorded, replayed, plain = done.counts
    # Three epochs of three batches and a smaller one, which is computed.
    assert plain == 3
    assert recorded + replayed == 9
    assert replayed >= 3
    assert done.replayer.exact
    assert done.replayer.stats.skipped_share > 0.1
