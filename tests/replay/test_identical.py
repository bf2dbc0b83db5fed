"""Losses, weights and random numbers are those of the run without replay, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from replaying import CLASSES, HEAD, LAST_TWO, Pairs, both, freeze, net, steps
from torch import Tensor, nn
from torch.utils.data import DataLoader, WeightedRandomSampler

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
        embd_pdrop=0.0,  # this dropout lies between frozen modules, and belongs to none
        tie_word_embeddings=is_tied,
    )


_MODELS: dict[str, tuple[Callable[[], nn.Module], str, dict[str, str | tuple[str, ...]]]] = {
    "vit": (_vit, "pixels", {"head": "classifier", "two": ("layers.2", "layers.3", "classifier")}),
    "resnet": (
        _resnet,
        "pixels",
        {"head": "classifier", "two": ("stages.2", "stages.3", "classifier")},
    ),
    "bert": (
        _bert,
        "words",
        {"head": ("classifier", "pooler"), "two": ("layer.2", "layer.3", "pooler", "classifier")},
    ),
    "gpt2": (
        _gpt2(is_tied=False),
        "text",
        {"head": "lm_head", "two": ("h.2", "h.3", "ln_f", "lm_head")},
    ),
    "gpt2-tied": (_gpt2(is_tied=True), "text", {"head": "ln_f", "two": ("h.2", "h.3", "ln_f")}),
}


class _Fields(torch.utils.data.Dataset):
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


@pytest.mark.parametrize(
    "how",
    [pytest.param(how, marks=[pytest.mark.slow] if "workers" in how else []) for how in _RUNS],
)
@pytest.mark.parametrize("cut", ["head", "two"])
@pytest.mark.parametrize("name", _MODELS)
def test_transformers_train_to_the_same_bits(name: str, cut: str, how: str, tmp_path: Path) -> None:
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
        lambda: DataLoader(_Fields(kind), batch_size=8, shuffle=True, num_workers=workers),
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


# How batches are made, on a small net.

_LOADERS: dict[str, dict[str, Any]] = {
    "in-order": {"batch_size": 8},
    "shuffled": {"batch_size": 8, "shuffle": True},
    "a-smaller-last-batch": {"batch_size": 7, "shuffle": True},
    "the-same-smaller-last-batch": {"batch_size": 7},
    "drop-last": {"batch_size": 7, "shuffle": True, "drop_last": True},
    "one-sample": {"batch_size": 1, "shuffle": True},
    "five": {"batch_size": 5, "shuffle": True},
    "thirty-two": {"batch_size": 32, "shuffle": True},
    "workers": {"batch_size": 8, "shuffle": True, "num_workers": 2},
    "kept-workers": {
        "batch_size": 8,
        "shuffle": True,
        "num_workers": 2,
        "persistent_workers": True,
    },
    "own-generator": {"batch_size": 8, "shuffle": True, "seed": 7},
    "with-replacement": {"batch_size": 8, "weights": True},
}


def _loader(
    size: int = 40, seed: int | None = None, weights: bool = False, **options: Any
) -> DataLoader[Any]:
    if seed is not None:
        options["generator"] = torch.Generator().manual_seed(seed)
    if weights:
        options["sampler"] = WeightedRandomSampler(torch.linspace(0.1, 2, size), size)
    return DataLoader(Pairs(size), **options)


@pytest.mark.parametrize("store", ["memory", "folder"])
@pytest.mark.parametrize("trains", [HEAD, LAST_TWO], ids=["head", "two"])
@pytest.mark.parametrize("name", _LOADERS)
def test_any_loader(name: str, trains: str | tuple[str, ...], store: str, tmp_path: Path) -> None:
    options = {} if store == "memory" else {"store": tmp_path}
    size = 96 if name == "thirty-two" else 40
    done = both(
        lambda: net(trains),
        lambda: _loader(size, **_LOADERS[name]),
        lambda *given: steps(*given, epochs=4),
        **options,
    )
    assert done.replayer.declined is None
    assert done.replayer.exact
    recorded, replayed, plain = done.counts
    a_last_one_differs = name == "a-smaller-last-batch"
    assert plain == (4 if a_last_one_differs else 1 if name == "the-same-smaller-last-batch" else 0)
    assert recorded + replayed + plain == 4 * len(_loader(size, **_LOADERS[name]))
    assert replayed >= (recorded + replayed) / 3


_OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
}


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_any_optimizer(name: str) -> None:
    done = both(
        lambda: net(LAST_TWO), lambda: _loader(**_LOADERS["shuffled"]), optimizer=_OPTIMIZERS[name]
    )
    assert done.counts == (5, 10, 0)


@pytest.mark.parametrize("audit", [0.0, 0.5, 1.0])
def test_audits_change_nothing(audit: float) -> None:
    done = both(
        lambda: net(LAST_TWO),
        lambda: _loader(**_LOADERS["shuffled"]),
        lambda *given: steps(*given, epochs=6),
        audit=audit,
    )
    stats = done.replayer.stats
    assert (stats.recorded, stats.replayed, stats.plain) == (5, 25, 0)
    low, high = {0.0: (2, 2), 0.5: (6, 20), 1.0: (25, 25)}[audit]
    assert low <= stats.compared <= high
