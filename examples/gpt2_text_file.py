"""GPT-2 on a text file with its first blocks frozen, then thawed one by one by a schedule.

    python examples/gpt2_text_file.py [TEXT_FILE [MODEL]]

Without a file this script reads itself; without a model, a name or folder of a GPT-2, a tiny one
with random weights and one token a byte is made.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from frostline.integrations.huggingface import FrostlineCallback

LENGTH = 64


def tiny_gpt2(folder: Path) -> Path:
    """A GPT-2 of four small blocks, and a tokenizer that takes each byte for a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytes_).save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(alphabet),
        n_embd=64,
        n_layer=4,
        n_head=4,
        n_positions=LENGTH,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def blocks_of(text: str, tokenizer: PreTrainedTokenizerFast) -> list[dict[str, torch.Tensor]]:
    """The text's tokens in blocks of equal length."""
    tokens = torch.tensor(tokenizer(text)["input_ids"])
    whole = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    return [{"input_ids": block, "labels": block} for block in whole]


def main(folder: Path, text: Path, model_name: str | None) -> None:
    """Train, and show what was frozen when."""
    set_seed(0)
    name = model_name or str(tiny_gpt2(folder))
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name)
    # The embedding is GPT-2's head as well: it is one tensor, and stays as it is.
    callback = FrostlineCallback(
        plan=["transformer.wte", "transformer.wpe", "blocks:first:1"],
        schedule=[
            {"epoch": 0, "train": ["blocks:last:1", "transformer.ln_f"]},
            {"epoch": 2, "train": ["blocks:last:2", "transformer.ln_f"]},
        ],
    )
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder / "run"),
            num_train_epochs=3,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            save_strategy="no",
            logging_steps=10,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=blocks_of(text.read_text(), tokenizer),
        callbacks=[callback],
    )
    trainer.train()
    assert callback.freezer is not None
    for row in callback.freezer.timeline():
        print(f"from step {row.step} on the schedule holds {len(row.frozen)} tensors frozen")


if __name__ == "__main__":
    given = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        main(
            Path(scratch),
            Path(given[0] if given else __file__),
            given[1] if len(given) > 1 else None,
        )
