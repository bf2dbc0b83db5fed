"""The command on pretrained models and data from disk: trained, killed, resumed, merged, loaded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import finetune_files as given
import pytest
import torch
from jobs import Calls, files, finetune, history, interrupt, only_run, read
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from frostline.cli import app
from frostline.cli.finetune_view import Display
from frostline.errors import ConfigError
from frostline.finetune import concluding, job
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.replaying import ReplayReport
from frostline.finetune.watcher import Silent

pytestmark = [
    pytest.mark.usefixtures("swift"),
    # Of transformers and torch among themselves; the tests of the sources look at ours.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

COMMAND = [sys.executable, "-m", "frostline", "finetune"]
IMAGES = ("--model", "vit", "--data", "photos", "--batch-size", "4", "--lr", "0.01")
TEXTS = ("--model", "bert", "--data", "reviews.csv", "--batch-size", "4", "--lr", "0.01")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data, as users have them."""
    folder = tmp_path_factory.mktemp("disk")
    given.vit(folder / "vit", labels=("cat", "dog"))
    given.vit(folder / "headless")
    given.bert(folder / "bert")
    given.gpt2(folder / "gpt2")
    given.images(folder / "photos", each=8)
    given.reviews(folder / "reviews.csv", each=10)
    given.sentences(folder / "tags.jsonl", count=16)
    (folder / "tale.txt").write_text(given.TALE)
    return folder


@pytest.fixture(autouse=True)
def _beside_the_files(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, in which the files seem to lie."""
    for file in disk.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Batch and logits of each model of this test, at the moment when it was shipped."""
    seen: list[dict[str, torch.Tensor]] = []
    ship = concluding.ship

    def noting(run: Any) -> str:
        setup = run.job.setup
        batch = next(iter(setup.held_out))
        setup.model.eval()
        with torch.no_grad():
            seen.append({**batch, "logits": setup.model(**batch).logits})
        return ship(run)

    monkeypatch.setattr(concluding, "ship", noting)
    return seen


def killed(*arguments: str) -> Path:
    """A run in a process of its own that was killed in its third epoch."""
    said = []
    with subprocess.Popen(
        [*COMMAND, *arguments, "--epochs", "1000000"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr
        for line in process.stderr:
            said.append(line)
            if line.startswith("epoch 2/"):
                break
        process.kill()
    assert process.returncode == -signal.SIGKILL, "".join(said)
    return only_run()


def stopped(*arguments: str) -> Path:
    """A run in this process that was interrupted in its second epoch."""
    watcher = Calls(lambda: signal.raise_signal(signal.SIGINT), 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Display, "step", lambda self, loss: watcher.step(loss))
        assert finetune(*arguments, "--epochs", "1000000") == 130
    return only_run()


@pytest.mark.parametrize(
    ("arguments", "stop", "auto"),
    [
        pytest.param(
            (*IMAGES, "--train", "classifier"), killed, AutoModelForImageClassification, id="vit"
        ),
        pytest.param(
            (*TEXTS, "--train", "classifier", "--train", "pooler", "--train", "layer.1"),
            stopped,
            AutoModelForSequenceClassification,
            id="bert",
        ),
    ],
)
def test_trained_killed_resumed_verified_merged_and_loaded(capsys, shipped, arguments, stop, auto):
    run = stop(*arguments)
    capsys.readouterr()
    epochs = len(history(run)) + 1
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 1000000", f"epochs: {epochs}"))
    assert finetune("--resume", str(run), "--json") == 0
    resumed = json.loads(capsys.readouterr().out)
    assert finetune(*arguments, "--epochs", str(epochs), "--out", "whole") == 0
    whole = only_run("whole")
    delta = run / "model" / "tuned.safetensors"
    assert delta.read_bytes() == (whole / "model" / "tuned.safetensors").read_bytes()
    assert history(run) == history(whole)
    assert resumed["proof"]["ok"]
    base = arguments[1]
    assert resumed["next"] == f"frostline merge {Path(base).absolute()} {delta} {run}/merged"

    assert app.run(["inspect", str(run)]) == 0
    assert "classifier" in capsys.readouterr().out
    assert app.run(["verify", base, str(delta), "--plan", str(run / "plan.yaml")]) == 0
    assert "The plan was kept" in capsys.readouterr().out
    assert app.run(["merge", base, str(delta), "merged"]) == 0
    assert "note" not in capsys.readouterr().err
    merged = auto.from_pretrained("merged")
    assert set(merged.config.id2label.values()) >= {"good", "bad"} or merged.config.num_labels == 3
    batch, inputs = shipped[0], {k: v for k, v in shipped[0].items() if k != "logits"}
    with torch.no_grad():
        assert torch.equal(merged.eval()(**inputs).logits, batch["logits"])


def test_a_base_without_a_head_gives_the_whole_model(shipped, capsys):
    arguments = ["--model", "headless", "--data", "photos", "--epochs", "1", "--replay", "memory"]
    assert finetune(*arguments) == 0
    said = capsys.readouterr().err
    assert "it is the head (classifier)" in said
    assert "holds the whole model" in said
    model = AutoModelForImageClassification.from_pretrained(only_run() / "model")
    assert sorted(model.config.label2id) == ["blue", "green", "red"]
    inputs = {k: v for k, v in shipped[0].items() if k != "logits"}
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, shipped[0]["logits"])


def test_a_language_model_is_told_by_its_perplexity(capsys):
    arguments = ["--model", "gpt2", "--data", "tale.txt", "--max-length", "16", "--lr", "0.01"]
    arguments += ["--train", "h.1", "--epochs", "2", "--lr-schedule", "cosine", "--warmup", "0.1"]
    assert finetune(*arguments, "--accumulate", "2", "--replay", "on", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["followed"], found["f1"]) == ("causal-lm", "loss", None)
    assert found["loss"]["after"] < found["loss"]["before"] - 0.2
    assert found["replay"]["why_not"] is None
    run = only_run()
    assert app.run(["merge", "gpt2", str(run / "model" / "tuned.safetensors"), "merged"]) == 0
    model = AutoModelForCausalLM.from_pretrained("merged")
    words = AutoTokenizer.from_pretrained("merged")("on day", return_tensors="pt")
    assert model(**words).logits.isfinite().all()


def test_token_classification_keeps_the_epoch_of_the_best_f1(capsys):
    arguments = ["--model", "bert", "--data", "tags.jsonl", "--epochs", "4", "--lr", "0.02"]
    assert finetune(*arguments, "--train", "classifier", "--train", "layer.1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["followed"]) == ("token-classification", "f1")
    assert found["f1"]["after"] > found["f1"]["before"]
    run = only_run()
    best = max(history(run), key=lambda line: (line["f1"], -line["held_out_loss"]))
    assert found["best_epoch"] == best["epoch"]
    assert found["f1"]["after"] == best["f1"]
    assert app.run(["merge", "bert", str(run / "model" / "tuned.safetensors"), "merged"]) == 0
    labels = AutoModelForTokenClassification.from_pretrained("merged").config.id2label.values()
    assert set(labels) >= {"O", "B-MOOD", "B-WORK"}


# --- what a run goes on with ------------------------------------------------------------------


def texts(out: str = "runs", **fields: object) -> FinetuneConfig:
    return FinetuneConfig(
        **{
            "model": "bert",
            "data": "reviews.csv",
            "batch_size": 8,
            "epochs": 3,
            "out": out,
            "replay": "off",
            "train": ["classifier"],
            **fields,
        }
    )


def stopped_run(**fields: object) -> Path:
    """A run that was stopped in its second epoch."""
    return interrupt(texts(**fields), Calls(lambda: signal.raise_signal(signal.SIGINT), 3))


def test_other_data_are_refused():
    run = stopped_run()
    Path("reviews.csv").unlink()
    given.reviews(Path("reviews.csv"), each=11)
    with pytest.raises(ConfigError, match=r"reviews\.csv is not the data that it began with"):
        job.resume(run)


def test_another_model_is_refused(disk):
    run = stopped_run()
    Path("bert").unlink()
    shutil.copytree(disk / "bert", "bert")
    weights = load_file("bert/model.safetensors")
    weights["bert.embeddings.LayerNorm.bias"] += 1
    save_file(weights, "bert/model.safetensors", metadata={"format": "pt"})
    message = r"not the one that the run began with.*bert\.embeddings\.LayerNorm\.bias differs"
    with pytest.raises(ConfigError, match=message):
        job.resume(run)
    assert read(run, "status.json")["resumable"] is True


def test_the_rates_of_a_run_go_on_too():
    fields = {"lr_schedule": "linear", "warmup": 0.2, "accumulate": 2, "lr": 0.01}
    whole = job.start(texts("whole", **fields))
    run = interrupt(texts(**fields), Calls(lambda: signal.raise_signal(signal.SIGINT), 2))
    job.resume(run)
    delta = Path("model") / "tuned.safetensors"
    assert (run / delta).read_bytes() == (whole.run / delta).read_bytes()


def test_training_that_no_longer_improves_ends_early():
    class Notes(Silent):
        said: list[str] = []

        def note(self, text: str) -> None:
            self.said.append(text)

    # So fast that it can only get worse.
    result = job.start(texts(epochs=20, early_stop=2, lr=5.0), Notes())
    assert result.epochs == result.best_epoch + 2 < 20
    assert any(f"stopped after epoch {result.epochs}: the accuracy" in s for s in Notes.said)
    assert "best.pt" not in files(result.run)
    scores = [line["accuracy"] for line in history(result.run)]
    assert result.accuracy.after == max(scores)


def test_mixed_precision_and_a_schedule():
    result = job.start(
        texts(mixed_precision="bf16", schedule="gradual-unfreeze", train=[], replay="off")
    )
    assert result.proof.ok
    assert isinstance(result.replay, ReplayReport)
    assert result.schedule.transitions > 0


def test_a_dry_run_writes_nothing(capsys):
    before = sorted(Path().iterdir())
    assert finetune(*IMAGES, "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trains"] == ["classifier.weight", "classifier.bias"]
    assert found["memory"]["total_bytes"] > found["memory"]["weight_bytes"] == 4 * found["of"]
    assert found["frost_line"]["skipped_share"] > 0.5
    assert (found["train_samples"], found["held_out_samples"]) == (18, 6)
    assert finetune(*IMAGES, "--dry-run") == 0
    assert "Nothing was trained, and nothing was written." in capsys.readouterr().out
    assert sorted(Path().iterdir()) == before
