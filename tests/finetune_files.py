"""Small pretrained models of transformers and small data, written to disk as people have them.

Each function writes into a folder that it makes, and returns it (or the file).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIDE = 16
"""Pixels of a side of an image as the ViT takes it."""

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30)}
"""Classes of images: what they mostly show."""

REVIEWS = {
    "good": ["a fine film", "great and warm", "the best of the year", "warm fun film", "fine fun"],
    "bad": ["a dull film", "slow and cold", "the worst of the year", "cold dull film", "slow dull"],
}
"""Classes of texts: what they say."""

TALE = "\n".join(
    f"on day {day} the cold film was slow and the warm year was fine" for day in range(120)
)
"""A text of some thousand words."""


def vit(folder: Path, *, labels: Sequence[str] = (), layers: int = 2) -> Path:
    """A ViT of width 32 for images of 16 x 16, with its image processor.

    Args:
        folder: where to.
        labels: what its head tells apart; without, it has no head.
        layers: number of blocks.
    """
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=SIDE,
        patch_size=4,
        **_labelled(labels),
    )
    _save(ViTForImageClassification if labels else ViTModel, config, folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def bert(folder: Path, *, labels: Sequence[str] = (), layers: int = 2) -> Path:
    """A BERT of width 32, with a WordPiece tokenizer that knows the words of this module.

    Args:
        folder: where to.
        labels: what its head tells apart; without, it is as masked language modelling left it.
        layers: number of blocks.
    """
    tokenizer = _wordpiece()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        **_labelled(labels),
    )
    _save(BertForSequenceClassification if labels else BertForMaskedLM, config, folder)
    tokenizer.save_pretrained(folder)
    return folder


def gpt2(folder: Path, *, layers: int = 2, dropout: float = 0.0) -> Path:
    """A GPT-2 of width 32 with 64 positions, and a byte-level BPE tokenizer without padding.

    Args:
        folder: where to.
        layers: number of blocks.
        dropout: of the embeddings, which lies outside of all blocks.
    """
    tokenizer = _byte_pairs()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=layers,
        n_head=2,
        n_positions=64,
        embd_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    _save(GPT2LMHeadModel, config, folder)
    tokenizer.save_pretrained(folder)
    return folder


def images(folder: Path, *, each: int = 6, classes: Sequence[str] = tuple(COLOURS)) -> Path:
    """A folder for each class with ``each`` images of different sizes, PNG and JPEG."""
    draw = np.random.default_rng(len(folder.name))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            height, width = draw.integers(20, 40, size=2)
            noise = draw.integers(-30, 30, size=(height, width, 3))
            pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
            suffix = "jpg" if number % 2 else "png"
            Image.fromarray(pixels).save(folder / name / f"{number}.{suffix}")
    return folder


def reviews(file: Path, *, each: int = 5, names: Mapping[str, object] | None = None) -> Path:
    """Texts with labels as CSV, JSON lines or Parquet, by the file's suffix.

    Args:
        file: where to.
        each: texts of a class; they repeat from the sixth on.
        names: what the labels are called, instead of ``good`` and ``bad``.
    """
    rows = [
        {"text": f"{texts[number % len(texts)]} {number}", "label": (names or {}).get(name, name)}
        for number in range(each)
        for name, texts in REVIEWS.items()
    ]
    return table(file, rows)


def sentences(file: Path, *, count: int = 8) -> Path:
    """Words with tags, as JSON lines or Parquet."""
    words = ["the", "warm", "film", "on", "year", "best"]
    tags = ["O", "B-MOOD", "B-WORK", "O", "B-TIME", "B-MOOD"]
    rows = []
    for number in range(count):
        length = 3 + number % 4
        rows.append({"tokens": words[:length], "tags": tags[:length]})
    return table(file, rows)


def table(file: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Rows as CSV, JSON lines or Parquet, by the file's suffix."""
    import pandas as pd

    file.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(list(rows))
    if file.suffix == ".csv":
        frame.to_csv(file, index=False)
    elif file.suffix == ".parquet":
        frame.to_parquet(file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _labelled(labels: Sequence[str]) -> dict[str, object]:
    if not labels:
        return {}
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: number for number, name in enumerate(labels)},
    }


def _save(kind: type, config: object, folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        kind(config).save_pretrained(folder)


def _corpus() -> list[str]:
    return [text for texts in REVIEWS.values() for text in texts] + [TALE]


def _wordpiece() -> PreTrainedTokenizerFast:
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special |= {"pad_token": "[PAD]", "mask_token": "[MASK]"}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )


def _byte_pairs() -> PreTrainedTokenizerFast:
    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end,
        eos_token=end,
        unk_token=end,
        model_max_length=64,
    )
