"""LoRA on the last block alone, with PEFT and the Trainer; everything below is replayed.

    python examples/huggingface_lora.py [MODEL]

MODEL is a name or folder of a Llama; without one a tiny one with random weights is made.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from frostline.integrations.huggingface import FrostlineCallback

LENGTH = 32


def tiny_llama(folder: Path) -> Path:
    """A Llama of six small blocks."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=LENGTH,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def counting(count: int) -> list[dict[str, torch.Tensor]]:
    """Sequences that count upwards in steps of one to five, from anywhere."""
    starts, strides = torch.arange(count) % 64, torch.arange(count) % 5 + 1
    rows = (starts[:, None] + strides[:, None] * torch.arange(LENGTH)) % 64
    return [{"input_ids": row, "labels": row} for row in rows]


def train(name: str, folder: Path, *, replay: bool) -> tuple[float, float]:
    """The last loss, and the seconds that it took."""
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(name)
    last = model.config.num_hidden_layers - 1
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_dropout=0.05,
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=[last],
    )
    # No plan: what PEFT has frozen is held, proven, and below the adapters replayed.
    callback = FrostlineCallback(replay=replay)
    trainer = Trainer(
        get_peft_model(model, lora),
        TrainingArguments(
            str(folder / "run"),
            num_train_epochs=10,
            per_device_train_batch_size=32,
            learning_rate=1e-2,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=counting(160),
        callbacks=[callback],
    )
    began = time.perf_counter()
    loss = trainer.train().training_loss
    if callback.replayer is not None:
        print(callback.replayer.stats)
    return loss, time.perf_counter() - began


def main(folder: Path, model_name: str | None) -> None:
    """Train twice, and compare."""
    name = model_name or str(tiny_llama(folder))
    plain, plain_seconds = train(name, folder, replay=False)
    replayed, seconds = train(name, folder, replay=True)
    assert replayed == plain, "the same bits are promised"
    print(f"the same loss, {replayed:.4f}, in {seconds:.2f} s instead of {plain_seconds:.2f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch), sys.argv[1] if len(sys.argv) > 1 else None)
