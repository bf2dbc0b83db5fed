from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from frostline.cli import app
from frostline.cli.finetune_view import Display, show
from frostline.finetune import savings
from frostline.finetune.metrics import EpochMetrics
from frostline.finetune.result import (
    Accuracy,
    Cost,
    ProofReport,
    Result,
    Savings,
    Trained,
)
from frostline.proof import Change

COMMAND = [sys.executable, "-m", "frostline", "finetune"]

NETS = """
import torch
from frostline.finetune.networks import DigitsCNN

class Nudges(DigitsCNN):
    "Moves one of its own tensors by one unit in the last place in each training step."
    tensor = "block1.1.running_mean"

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                value = self.get_submodule("block1.1").running_mean
                value[3] = torch.nextafter(value[3], torch.tensor(9.0))
        return super().forward(x)

class NudgesWeight(DigitsCNN):
    def forward(self, x):
        if self.training:
            value = self.stem[0].weight.detach().view(-1)
            value[7] = torch.nextafter(value[7], torch.tensor(9.0))
        return super().forward(x)

def talks():
    print("I am built")
    net = DigitsCNN()
    net.register_forward_hook(lambda *_: print("I am called"))
    return net
"""


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FROSTLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(savings, "_PATIENCE_SECONDS", 0.0)
        yield


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test runs in an empty folder, its networks on one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def finetune(*arguments: str) -> int:
    return app.run(["finetune", *arguments])


def only_run(out: str = "runs") -> Path:
    (run,) = Path(out).iterdir()
    return run


# --- what it prints ---------------------------------------------------------------------------


def test_json_is_one_object_and_nothing_else(capsys):
    assert finetune("--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    run = only_run()
    assert found["run"] == str(run)
    assert found == json.loads((run / "result.json").read_text())
    assert found["proof"]["ok"] is True
    assert found["proof"]["tensors"] == 18
    assert found["proof"]["changes"] == []
    assert found["accuracy"]["before"] < 0.5
    assert found["accuracy"]["after"] > 0.9
    assert found["saved"]["frozen"].keys() == {
        "gradient_bytes",
        "optimizer_state_bytes",
        "activation_bytes",
        "step_seconds",
    }
    assert found["saved"]["frozen"].keys() == found["saved"]["full"].keys()
    assert "epoch 10/10" in captured.err


def test_the_table_answers_at_a_glance(capsys):
    assert finetune("--epochs", "2") == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^accuracy +\d+\.\d% \(the head is new\) → \d+\.\d% on 225 held-out", out, re.M
    )
    assert re.search(r"^proof +holds: 18 frozen tensors \(9 parameters, 9 buffers\)", out, re.M)
    assert re.search(r"^gradients +291\.5 KiB +509\.9 KiB +43%", out, re.M)
    run = only_run()
    assert f"run       {run}\n" in out
    assert out.endswith(f"next      frostline inspect {run}/model.safetensors\n")
    assert max(map(len, out.splitlines())) <= 80


def test_what_a_model_prints_does_not_get_into_the_result(capsys):
    Path("nets.py").write_text(NETS)
    assert finetune("--model", "nets.py:talks", "--train", "head", "--epochs", "1", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["model"] == "nets.py:talks"
    assert "I am built" in captured.err
    assert "I am called" in captured.err


def test_a_second_run_leaves_the_first_alone(capsys):
    assert finetune("--epochs", "1") == 0
    first = only_run()
    before = {file: file.read_bytes() for file in first.iterdir()}
    assert finetune("--epochs", "1") == 0
    assert len(list(Path("runs").iterdir())) == 2
    assert {file: file.read_bytes() for file in first.iterdir()} == before


def test_flags_win_over_the_file_and_the_run_keeps_what_was_used(capsys):
    Path("job.yaml").write_text("epochs: 7\nlr: 0.003\ntrain: [block2, head]\nout: elsewhere\n")
    assert finetune("job.yaml", "--epochs", "1", "--train", "head", "--batch-size", "64") == 0
    run = only_run("elsewhere")
    kept = (run / "config.yaml").read_text()
    for line in ("epochs: 1", "lr: 0.003", "batch_size: 64", "train:\n- head\n", "out: elsewhere"):
        assert line in kept
    assert (run / "plan.yaml").read_text() == (
        "frostline: 1\nrules:\n- freeze: '**'\n- train: head\n"
    )


def test_a_run_can_be_repeated_from_its_own_configuration_and_plan(capsys):
    assert finetune("--epochs", "1", "--train", "head", "--lr", "0.003") == 0
    first = only_run()
    assert finetune(f"{first}/config.yaml", "--plan", f"{first}/plan.yaml", "--out", "again") == 0
    weights = [(run / "model.safetensors").read_bytes() for run in (first, only_run("again"))]
    assert weights[0] == weights[1]


# --- what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "freeze", "name", "kind"),
    [
        pytest.param("Nudges", "block1", "block1.1.running_mean", "buffer", id="buffer"),
        pytest.param("NudgesWeight", "stem", "stem.0.weight", "parameter", id="weight"),
    ],
)
def test_one_unit_in_the_last_place_is_exit_code_1(capsys, model, freeze, name, kind):
    Path("nets.py").write_text(NETS)
    arguments = ["--model", f"nets.py:{model}", "--freeze", freeze, "--epochs", "1"]
    assert finetune(*arguments, "--json") == 1
    captured = capsys.readouterr()
    proof = json.loads(captured.out)["proof"]
    assert proof["ok"] is False
    (change,) = proof["changes"]
    assert (change["name"], change["kind"], change["moved"]) == (name, kind, 1)
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"error: the proof failed: {kind} {name}: 1 of ")
    run = only_run()
    assert json.loads((run / "result.json").read_text())["proof"]["ok"] is False
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert finetune(*arguments) == 1
    assert "FAILED: 1 of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            "--train hed", "selector 'hed' matches none.*Nearest names: 'head'", id="typo"
        ),
        pytest.param("--freeze **", "nothing to train", id="nothing-to-train"),
        pytest.param("--train ** ", "freezes nothing", id="nothing-frozen"),
        pytest.param("--train head --freeze stem", "train and freeze can't go together", id="both"),
        pytest.param("--optimizer Adm", "no optimizer 'Adm'.*'Adam'", id="optimizer"),
        pytest.param("--optimizer Rprop --weight-decay 1", "'weight_decay'", id="option"),
        pytest.param("--lr 0", "--lr: got 0.0, expected greater than 0", id="lr"),
        pytest.param("--lr fast", "Invalid value for '--lr'", id="no-number"),
        pytest.param("--epochs 0", "--epochs: got 0", id="epochs"),
        pytest.param("--data mnist", "--data: got 'mnist', expected 'digits'", id="data"),
        pytest.param("--model nowhere.py:f --train a", "there is no file nowhere.py", id="model"),
        pytest.param("--model tutorial --train fc2", "expected logits of shape", id="shapes"),
        pytest.param("--plan nowhere.yaml", "nowhere.yaml", id="plan"),
        pytest.param("--plan empty.yaml", "empty.yaml is empty", id="empty-plan"),
        pytest.param("empty.yaml", "empty.yaml is empty", id="empty-file"),
        pytest.param("nowhere.yaml", "nowhere.yaml: No such file", id="file"),
        pytest.param("--resume nowhere", "nowhere is not a run that can be resumed", id="resume"),
        pytest.param("--resume x --lr 1", "takes no other option but --json", id="resume-lr"),
        pytest.param("--resume x empty.yaml", "takes no other option but", id="resume-file"),
        pytest.param("--out empty.yaml", "empty.yaml: a file is in the way", id="out"),
        pytest.param("--schedule x", "No such option", id="no-such-flag"),
    ],
)
def test_a_wrong_call_is_one_line_and_leaves_nothing(capsys, arguments, message):
    Path("empty.yaml").touch()
    assert finetune(*arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert re.match(rf"error: .*{message}", last), last
    assert "Traceback" not in captured.err
    assert [path.name for path in Path().iterdir()] == ["empty.yaml"]


def test_a_cache_that_cannot_be_written_is_a_note(capsys, monkeypatch):
    Path("file").touch()
    monkeypatch.setenv("FROSTLINE_CACHE", "file/below")
    assert finetune("--epochs", "1", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["proof"]["ok"] is True
    assert captured.err.count("is not cached") == 1


# --- signals ----------------------------------------------------------------------------------


def start(*arguments: str) -> tuple[subprocess.Popen[str], list[str]]:
    """The command in a process of its own, training; and what it has written so far."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("epoch 2/"):
            return process, said
    raise AssertionError("".join(said))


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{**line, "seconds": None} for line in lines]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize(
    ("number", "code", "state"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted", id="ctrl-c"),
        pytest.param(signal.SIGTERM, 130, "interrupted", id="sigterm"),
        pytest.param(signal.SIGKILL, -9, "running", id="kill"),
    ],
)
def test_a_run_that_a_signal_ends_goes_on_bit_for_bit(capsys, number, code, state):
    process, _ = start("--epochs", "1000000", "--json")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    run = only_run()
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["resumable"]) == (state, True)
    assert status["next"] == f"frostline finetune --resume {run}"
    if code == 130:
        done = status["epoch"]
        line = f"interrupted after epoch {done} of 1000000; to go on: {status['next']}"
        assert err.splitlines()[-1] == line
        assert "Traceback" not in err
    # A million epochs made sure that the signal came in time; go on to the next few alone.
    epochs = len(metrics_of(run)) + 2
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 1000000", f"epochs: {epochs}"))
    assert finetune("--resume", str(run), "--json") == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == epochs
    assert finetune("--epochs", str(epochs), "--out", "whole") == 0
    whole = only_run("whole")
    weights = [(one / "model.safetensors").read_bytes() for one in (run, whole)]
    assert weights[0] == weights[1]
    assert metrics_of(run) == metrics_of(whole)


def test_two_processes_do_not_train_into_one_run(capsys):
    process, _ = start("--epochs", "1000000")
    try:
        run = only_run()
        assert finetune("--resume", str(run)) == 2
        assert "error: another process is training in" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_the_default_job_takes_well_under_a_minute():
    began = time.monotonic()
    subprocess.run(COMMAND, check=True, capture_output=True, timeout=60)
    assert time.monotonic() - began < 60


# --- the view on its own ----------------------------------------------------------------------

RESULT = Result(
    run=Path("runs/digits-cnn-20250131-123005"),
    model="digits-cnn",
    data="digits",
    epochs=10,
    train_seconds=1.25,
    trained=Trained(rules="freeze: **; train: head", parameters=645, of=130_533),
    accuracy=Accuracy(before=0.2, after=0.9778, held_out=225),
    proof=ProofReport(parameters=12, buffers=12, seconds=0.0012, changes=()),
    saved=Savings(
        frozen=Cost(
            gradient_bytes=1024, optimizer_state_bytes=0, activation_bytes=2048, step_seconds=0.003
        ),
        full=Cost(
            gradient_bytes=4096, optimizer_state_bytes=0, activation_bytes=2048, step_seconds=0.002
        ),
    ),
    next="frostline inspect runs/digits-cnn-20250131-123005/model.safetensors",
)
VIEW = """
    accuracy 20.0% (the head is new) → 97.8% on 225 held-out scans; 10 epochs in 1.25 s
    proof holds: 24 frozen tensors (12 parameters, 12 buffers) are bitwise unchanged;
    checked in 1.2 ms
    trained 645 of 130,533 parameters (freeze: **; train: head)
    one step frozen full training saved
    gradients 1.0 KiB 4.0 KiB 75%
    optimizer state 0 B 0 B -
    activations kept 2.0 KiB 2.0 KiB 0%
    time 3 ms 2 ms -50%
    run runs/digits-cnn-20250131-123005
    next frostline inspect runs/digits-cnn-20250131-123005/model.safetensors
"""
MOVED = Change(
    name="stem.1.running_mean",
    kind="buffer",
    elements=32,
    moved=1,
    max_abs=1e-7,
    cause="someone nudged it",
)


def shown(result: Result, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show(result, console)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


@pytest.mark.parametrize("width", [80, 120])
def test_the_view_of_a_run(width):
    text = shown(RESULT, width)
    assert " ".join(text.split()) == " ".join(line.strip() for line in VIEW.splitlines()).strip()
    assert max(map(len, text.splitlines())) <= width


def test_the_view_of_a_proof_that_failed():
    failed = replace(RESULT, proof=replace(RESULT.proof, changes=(MOVED,)), saved=None)
    text = " ".join(shown(failed).split())
    assert "proof FAILED: 1 of 24 frozen tensors (12 parameters, 12 buffers) changed" in text
    assert "one step" not in text


def test_paths_are_neither_markup_nor_broken():
    run = Path("[red]" + "a" * 100 + "[/red]")
    assert f"run       {run}" in shown(replace(RESULT, run=run)).splitlines()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_on_a_terminal_and_elsewhere(terminal):
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=terminal, color_system=None)
    with Display(console) as display:
        display.note("a [note]")
        display.begin(epochs=2, done=0, steps=1)
        for epoch in (1, 2):
            display.step(0.5)
            display.epoch(EpochMetrics(epoch=epoch, loss=0.5, accuracy=0.75, seconds=0.1))
        display.measuring()
    written = stream.getvalue()
    assert "a [note]\n" in written
    if terminal:
        assert "measuring what freezing saved" in written
        assert written.endswith("\x1b[2K")  # the bar is cleared
    else:
        assert written.splitlines() == [
            "a [note]",
            "epoch 1/2  loss 0.500  accuracy 75.0%",
            "epoch 2/2  loss 0.500  accuracy 75.0%",
        ]
