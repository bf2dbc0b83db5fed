"""Text classification with BERT and the Trainer: the last block and the head train.

    python examples/huggingface_trainer.py [MODEL]

MODEL is a name or folder of a BERT; without one a tiny one with random weights is made.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

import frostline as fl
from frostline.integrations.huggingface import FrostlineCallback

GOOD = ["good", "great", "lovely", "bright", "fresh", "warm"]
BAD = ["bad", "poor", "awful", "dull", "stale", "cold"]
REST = ["the", "a", "soup", "film", "room", "day", "was", "is", "and", "very", "so", "it"]


def tiny_bert(folder: Path) -> Path:
    """A BERT of four small blocks and a tokenizer that knows the words above."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*specials, *GOOD, *BAD, *REST]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def reviews(tokenizer: AutoTokenizer, count: int, seed: int) -> list[dict[str, object]]:
    """Tokenised sentences and whether they are kind; all of one length, so that they replay."""
    draw = random.Random(seed)
    samples = []
    for _ in range(count):
        label = draw.randrange(2)
        words = [*draw.choices(REST, k=6), *draw.choices(GOOD if label else BAD, k=2)]
        draw.shuffle(words)
        sample = tokenizer(" ".join(words), padding="max_length", max_length=16, truncation=True)
        samples.append({**sample, "labels": label})
    return samples


def main(folder: Path, model_name: str | None) -> None:
    """Train, with the best checkpoint loaded at the end, and say what was proven."""
    set_seed(0)
    name = model_name or str(tiny_bert(folder))
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)

    callback = FrostlineCallback(
        fl.Plan.all_but(["bert.encoder.layer.3", "bert.pooler", "classifier"]), replay=True
    )
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder / "run"),
            num_train_epochs=4,
            per_device_train_batch_size=32,
            learning_rate=2e-3,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            report_to=[],
        ),
        train_dataset=reviews(tokenizer, 256, seed=1),
        eval_dataset=reviews(tokenizer, 64, seed=2),
        callbacks=[callback],
    )
    trainer.train()
    print(trainer.state.log_history[-1])  # what is frozen is bit for bit what it was


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch), sys.argv[1] if len(sys.argv) > 1 else None)
