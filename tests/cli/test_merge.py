"""Models as transformers saves them, in shards: tuned, merged, and loaded by from_pretrained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

import frostline as fl
from frostline.checkpoint import load_trained, save_trained
from frostline.cli.app import run


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=3, n_head=2,
                   bos_token_id=0, eos_token_id=1)
    )  # fmt: skip


def bert() -> Any:
    return BertForSequenceClassification(
        BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                   intermediate_size=32, max_position_embeddings=16, num_labels=4)
    )  # fmt: skip


def tune(model: Any, all_but: object, ids: torch.Tensor) -> None:
    fl.freeze(model, all_but=all_but)  # type: ignore[arg-type]
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=1e-2)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids).logits.square().sum().backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize(
    ("build", "auto", "all_but"),
    [
        pytest.param(gpt2, AutoModelForCausalLM, ["h.2", "ln_f"], id="GPT-2, last block"),
        pytest.param(gpt2, AutoModelForCausalLM, "lm_head", id="GPT-2, tied head"),
        pytest.param(bert, AutoModelForSequenceClassification, "classifier", id="BERT, head"),
    ],
)
@pytest.mark.parametrize("shard", ["10KB", "5GB"], ids=["in shards", "one file"])
def test_a_merged_folder_loads_and_gives_the_same_logits(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    build: Callable[[], Any],
    auto: Any,
    all_but: object,
    shard: str,
) -> None:
    ids = torch.randint(32, (2, 8))
    base, delta, out = (str(tmp_path / name) for name in ("base", "d.safetensors", "out"))
    build().save_pretrained(base, max_shard_size=shard)
    assert Path(base, "model.safetensors.index.json").exists() is (shard == "10KB")
    model = auto.from_pretrained(base)
    tune(model, all_but, ids)
    saved = save_trained(model, delta)
    wanted = model(input_ids=ids).logits

    assert run(["verify", base, delta]) == 0
    assert run(["merge", base, delta, out]) == 0
    merged = auto.from_pretrained(out).eval()
    assert torch.equal(merged(input_ids=ids).logits, wanted)
    again = auto.from_pretrained(base)
    load_trained(again, delta)
    assert torch.equal(again.eval()(input_ids=ids).logits, wanted)

    saved.plan.save(tmp_path / "plan.yaml")
    capsys.readouterr()
    plan = str(tmp_path / "plan.yaml")
    assert run(["verify", base, out, "--plan", plan, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["changed"]) == set(saved.names)
    assert sorted(p.name for p in Path(out).iterdir()) == sorted(
        p.name for p in Path(base).iterdir()
    )


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    base = bert()
    base.save_pretrained("base")
    model = bert()
    model.load_state_dict(base.state_dict())
    tune(model, "classifier", torch.randint(32, (2, 8)))
    save_trained(model, "d.safetensors")
    return tmp_path


def test_it_says_what_it_wrote(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["merge", "base", "d.safetensors", "out"]) == 0
    said, next_step = capsys.readouterr().out.splitlines()
    assert said.endswith(" KiB in 1 file; 2 tensors of the delta, the rest of the base.")
    assert next_step == "Next: frostline verify base out"


def test_json_is_one_object(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["merge", "base", "d.safetensors", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["files"]) == ("out", ["out/model.safetensors"])
    assert (found["replaced"], found["added"]) == (["classifier.weight", "classifier.bias"], [])


def test_a_new_head_needs_its_configuration(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = BertForSequenceClassification.from_pretrained(
        "base", num_labels=7, ignore_mismatched_sizes=True
    )
    fl.freeze(model, all_but="classifier")
    save_trained(model, "new.safetensors")
    model.config.save_pretrained("config")
    capsys.readouterr()
    assert run(["merge", "base", "new.safetensors", "out"]) == 0
    assert "Take the tuned model's with --config FOLDER" in capsys.readouterr().err
    assert run(["merge", "base", "new.safetensors", "new", "--config", "config"]) == 0
    assert "note" not in capsys.readouterr().err
    merged = AutoModelForSequenceClassification.from_pretrained("new")
    assert torch.equal(merged.classifier.weight, model.classifier.weight)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["base", "d.safetensors", "base"], "it exists", id="onto the base"),
        pytest.param(["base", "base", "out"], "there is no file base", id="no delta"),
        pytest.param(
            ["base", "base/model.safetensors", "out"], "is no delta: fl.save_trained", id="full"
        ),
        pytest.param(["other", "d.safetensors", "out"], "is not of the base other", id="base"),
        pytest.param(
            ["base", "d.safetensors", "out", "--config", "no"], "there is no folder no", id="config"
        ),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    files: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bert().save_pretrained("other")
    capsys.readouterr()
    assert run(["merge", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert not Path("out").exists()
