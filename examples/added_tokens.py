"""New tokens for a tokenizer: only their rows of the embedding are trained.

    python examples/added_tokens.py [MODEL]

MODEL is a name or folder of a masked language model; without one a tiny BERT with random weights
is made.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    set_seed,
)

import frostline as fl

WORDS = [
    "the",
    "frost",
    "line",
    "is",
    "how",
    "deep",
    "the",
    "ground",
    "of",
    "a",
    "place",
    "freezes",
    "in",
    "winter",
]
NEW = ["permafrost", "thaw", "glacier"]
TEXTS = [
    "the permafrost is how deep the ground of a place freezes",
    "the thaw of the ground in winter is deep",
    "a glacier is a place of winter",
]


def tiny_bert(folder: Path) -> Path:
    """A BERT of two small blocks that knows some words about the winter."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*specials, *dict.fromkeys(WORDS)]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def main(folder: Path, model_name: str | None) -> None:
    """Add tokens, train their rows with plain PyTorch, and prove that no other row moved."""
    set_seed(0)
    name = model_name or str(tiny_bert(folder))
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForMaskedLM.from_pretrained(name)

    known = len(tokenizer)
    tokenizer.add_tokens(NEW)
    model.resize_token_embeddings(len(tokenizer))
    embedding = "word_embeddings.weight"
    fl.freeze(model, all_but=embedding)
    rows = fl.freeze_rows(model, embedding, slice(0, known))

    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    is_new = batch["input_ids"] >= known
    labels = batch["input_ids"].masked_fill(~is_new, -100)
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=1e-2, weight_decay=0.1)
    for step in range(31):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    rows.verify()  # decay and momentum would have moved them behind a mask on the gradient
    print(f"{known} rows are bit for bit what they were; {len(NEW)} were trained")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch), sys.argv[1] if len(sys.argv) > 1 else None)
