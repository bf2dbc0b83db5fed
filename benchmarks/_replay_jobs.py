"""The jobs that replay is measured on: digits as images and texts, and what trains of each model.

For each setting it is also written down how the frozen part is left out by hand: which features to
compute beforehand, and what of the model is trained on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

SIDE, PATCH, CLASSES = 48, 8, 10
BATCH = 32

Features = Callable[[Any, Tensor], Tensor]
"""``features(model, inputs)``: what the frozen part hands to the rest."""
Suffix = Callable[[Any, Tensor], Tensor]
"""``suffix(model, features)``: the logits, by the live part alone."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What trains of a model.

    Attributes:
        trains: names of the modules that train.
        features: computes by hand what the frozen part hands on.
        suffix: computes by hand the logits from that.
    """

    trains: tuple[str, ...]
    features: Features
    suffix: Suffix


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model and its data.

    Attributes:
        name: for the tables.
        what: its size, in words.
        make: builds the model with random weights.
        data: the first samples of the data, as (inputs, label).
        head: the setting in which the head alone trains.
        last_two: the setting in which the last two blocks train, too.
    """

    name: str
    what: str
    make: Callable[[], nn.Module]
    data: Callable[[int], TensorDataset]
    head: Setting
    last_two: Setting

    def fresh(self) -> nn.Module:
        """The model with the same random weights each time."""
        torch.manual_seed(0)
        return self.make()


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured.

    Attributes:
        jobs: names in ``JOBS``.
        samples: of each job; a multiple of the batch size.
        epochs: of a run.
        repeats: runs from fresh copies.
        width: of the ViT whose memory is measured.
        threads: of torch.
    """

    jobs: tuple[str, ...]
    samples: int
    epochs: int
    repeats: int
    width: int
    threads: int


def images(count: int) -> TensorDataset:
    """Digits enlarged from 8 to 48 pixels: (3, 48, 48) and a label."""
    digits = load_digits()
    small = torch.tensor(digits.images[:count], dtype=torch.float32)[:, None] / 16
    large = F.interpolate(small, size=(SIDE, SIDE), mode="bilinear")
    return TensorDataset(
        large.expand(-1, 3, -1, -1).contiguous(), torch.tensor(digits.target[:count])
    )


def texts(count: int) -> TensorDataset:
    """Digits read row by row as a text of 64 words, one of 17 greys each; and a label."""
    digits = load_digits()
    words = torch.tensor(digits.data[:count], dtype=torch.int64) + 1  # 0 pads
    return TensorDataset(words, torch.tensor(digits.target[:count]))


def vit(*, width: int = 192, layers: int = 12, heads: int = 3) -> nn.Module:
    """A ViT for 48 pixels in patches of 8."""
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            image_size=SIDE,
            patch_size=PATCH,
            num_labels=CLASSES,
        )
    )


def resnet18() -> nn.Module:
    """ResNet-18 as transformers has it."""
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=64,
            hidden_sizes=[64, 128, 256, 512],
            depths=[2, 2, 2, 2],
            layer_type="basic",
            num_labels=CLASSES,
        )
    )


def bert() -> nn.Module:
    """A BERT that classifies texts of up to 64 words."""
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=32,
            hidden_size=256,
            num_hidden_layers=8,
            num_attention_heads=4,
            intermediate_size=1024,
            max_position_embeddings=64,
            num_labels=CLASSES,
        )
    )


def gpt2() -> nn.Module:
    """A GPT-2 that classifies texts of up to 64 words by what it makes of the last one."""
    return transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(
            vocab_size=32,
            n_embd=256,
            n_layer=8,
            n_head=4,
            n_positions=64,
            # This dropout stands before the first block, as a part of what is not all frozen.
            embd_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            num_labels=CLASSES,
            use_cache=False,
        )
    )


def vit_last_two(*, layers: int) -> Setting:
    """The last two blocks, the norm after them and the head of a ViT."""
    one, two = layers - 2, layers - 1

    def suffix(model: Any, tokens: Tensor) -> Any:
        for layer in (model.vit.layers[one], model.vit.layers[two], model.vit.layernorm):
            tokens = layer(tokens)
        return model.classifier(tokens[:, 0])

    return Setting(
        trains=(f"vit.layers.{one}", f"vit.layers.{two}", "vit.layernorm", "classifier"),
        features=lambda model, x: model.vit(x, output_hidden_states=True).hidden_states[-3],
        suffix=suffix,
    )


def _bert_suffix(model: Any, words: Tensor) -> Any:
    for layer in model.bert.encoder.layer[6:]:
        words = layer(words)
    return model.classifier(model.dropout(model.bert.pooler(words)))


def _gpt2_suffix(model: Any, words: Tensor) -> Any:
    for block in model.transformer.h[6:]:
        words = block(words)
    return model.score(model.transformer.ln_f(words))[:, -1]


JOBS = {
    "vit": Job(
        name="ViT",
        what="12 layers, width 192, patch 8",
        make=vit,
        data=images,
        head=Setting(
            trains=("classifier",),
            features=lambda model, x: model.vit(x).last_hidden_state[:, 0],
            suffix=lambda model, features: model.classifier(features),
        ),
        last_two=vit_last_two(layers=12),
    ),
    "resnet": Job(
        name="ResNet-18",
        what="transformers' ResNet of that size",
        make=resnet18,
        data=images,
        head=Setting(
            trains=("classifier",),
            features=lambda model, x: model.resnet(x).pooler_output,
            suffix=lambda model, features: model.classifier(features),
        ),
        last_two=Setting(
            trains=("resnet.encoder.stages.3", "classifier"),
            features=lambda model, x: model.resnet(x, output_hidden_states=True).hidden_states[-2],
            suffix=lambda model, maps: model.classifier(
                model.resnet.pooler(model.resnet.encoder.stages[3](maps))
            ),
        ),
    ),
    "bert": Job(
        name="BERT",
        what="8 layers, width 256, 64 words",
        make=bert,
        data=texts,
        head=Setting(
            trains=("classifier",),
            features=lambda model, x: model.bert(x).pooler_output,
            suffix=lambda model, features: model.classifier(model.dropout(features)),
        ),
        last_two=Setting(
            trains=("bert.encoder.layer.6", "bert.encoder.layer.7", "bert.pooler", "classifier"),
            features=lambda model, x: model.bert(x, output_hidden_states=True).hidden_states[-3],
            suffix=_bert_suffix,
        ),
    ),
    "gpt2": Job(
        name="GPT-2",
        what="8 layers, width 256, 64 words",
        make=gpt2,
        data=texts,
        head=Setting(
            trains=("score",),
            features=lambda model, x: model.transformer(x).last_hidden_state[:, -1],
            suffix=lambda model, features: model.score(features),
        ),
        last_two=Setting(
            trains=("transformer.h.6", "transformer.h.7", "transformer.ln_f", "score"),
            features=lambda model, x: model.transformer(x, output_hidden_states=True).hidden_states[
                -3
            ],
            suffix=_gpt2_suffix,
        ),
    ),
}
