"""LoRA on the last block alone, in the Trainer: all below is held, proven and replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

from framework_huggingface import StopAfter, arguments, quiet_trainer
from framework_jobs import copied
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback

import frostline as fl
from frostline.integrations.huggingface import FrostlineCallback

# PEFT 0.21 asks transformers 5.23 by a name that it has given up.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

LAYERS = 3
_DRAWN = torch.randint(1, 50, (32, 12), generator=torch.Generator().manual_seed(1))
TEXTS = [{"input_ids": ids, "labels": ids[0] % 2} for ids in _DRAWN]


def adapted() -> Any:
    """A BERT with LoRA in its last layer; dropout everywhere, as people have it."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        lora_dropout=0.1,
        target_modules=["query", "value"],
        layers_to_transform=[LAYERS - 1],
        layers_pattern="layer",
    )
    return get_peft_model(BertForSequenceClassification(config), lora)


def train(out: Path, *others: TrainerCallback, **how: Any) -> tuple[Any, FrostlineCallback]:
    checkpoint = how.pop("checkpoint", None)
    callback = FrostlineCallback(**how)
    trainer = quiet_trainer(
        adapted(),
        arguments(out, num_train_epochs=3, per_device_train_batch_size=8),
        train_dataset=TEXTS,
        callbacks=[callback, *others],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer, callback


def test_all_below_the_adapters_is_replayed_and_no_bit_differs(tmp_path: Path) -> None:
    plain, _ = train(tmp_path)
    replayed, callback = train(tmp_path, replay=True)
    assert callback.replayer is not None
    assert callback.replayer.stats.replayed == 8  # epochs 2 and 3, of 4 batches
    assert not any("encoder.layer.0" in place for place in callback.replayer.refused)
    assert replayed.losses == plain.losses
    before, after, other = (copied(m) for m in (adapted(), plain.model, replayed.model))
    assert all(torch.equal(after[name], other[name]) for name in after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora_" in name or "modules_to_save" in name}


def test_a_schedule_leaves_the_base_alone_and_resumes(tmp_path: Path) -> None:
    """What PEFT froze is no schedule's; the checkpoint holds adapters alone."""
    phases = [{"step": 0, "train": ["classifier"]}, {"step": 5, "train": ["**"]}]
    whole, _ = train(tmp_path, schedule=phases)
    stopped, _ = train(tmp_path, StopAfter(7), schedule=phases)
    resumed, _ = train(tmp_path, schedule=phases, checkpoint=str(tmp_path / "checkpoint-7"))
    assert stopped.losses + resumed.losses == whole.losses
    before, after, again = (copied(m) for m in (adapted(), whole.model, resumed.model))
    assert all(torch.equal(after[name], again[name]) for name in after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora_" in name or "modules_to_save" in name}


def test_adapters_on_another_base_are_refused(tmp_path: Path) -> None:
    train(tmp_path, StopAfter(2))
    trainer = quiet_trainer(
        adapted(),
        arguments(tmp_path, num_train_epochs=1, per_device_train_batch_size=8),
        train_dataset=TEXTS,
        callbacks=[FrostlineCallback()],
    )
    with torch.no_grad():
        trainer.model.base_model.model.bert.embeddings.word_embeddings.weight.add_(1.0)
    with pytest.raises(fl.PlanError, match=r"word_embeddings.*frozen with other content"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
