from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
from jobs import finetune, only_run

from frostline.finetune.engine import MainFailedError
from frostline.replay.limits import ReplayWarning

pytestmark = pytest.mark.usefixtures("job_folder")


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


def test_replay_is_asked_for_and_told(capsys):
    results = {}
    for how in ("off", "features"):
        arguments = ["--train", "head", "--epochs", "3", "--replay", how, "--out", f"with-{how}"]
        assert finetune(*arguments, "--json") == 0
        captured = capsys.readouterr()
        results[how] = json.loads(captured.out)
        assert ("will be kept in features" in captured.err) is (how == "features")
    assert results["off"]["replay"]["why_not"] == "it is switched off (replay: off)"
    told = results["features"]["replay"]
    assert (told["place"], told["why_not"]) == ("features", None)
    assert told["replayed"] > 10
    assert results["off"]["accuracy"] == results["features"]["accuracy"]
    weights = [
        (only_run(f"with-{how}") / "model.safetensors").read_bytes() for how in ("off", "features")
    ]
    assert weights[0] == weights[1]


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
        pytest.param("--early-stop 0", "--early-stop: got 0, expected greater", id="early-stop"),
        pytest.param("--columns text", "expected ROLE=NAME", id="columns"),
        pytest.param("--mixed-precision fp16", "fp16 needs a GPU", id="fp16"),
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
        pytest.param("--replay empty.yaml", "--replay: .*empty.yaml", id="replay"),
        pytest.param("--schedul x", "No such option", id="no-such-flag"),
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


def test_only_the_main_process_says_why_it_failed(capsys, monkeypatch):
    def fail(*_: object) -> None:
        raise MainFailedError("no space left")

    monkeypatch.setattr("frostline.finetune.job.start", fail)
    assert finetune("--epochs", "1") == 2
    assert capsys.readouterr() == ("", "")


def test_a_warning_of_ours_is_a_line_and_one_of_the_users_code_is_as_it_was(capsys, monkeypatch):
    def warn(*_: object) -> None:
        warnings.simplefilter("always")
        warnings.warn("the disk is full", ReplayWarning, stacklevel=1)
        warnings.warn("from a user's code", UserWarning, stacklevel=1)
        raise MainFailedError("that will do")

    monkeypatch.setattr("frostline.finetune.job.start", warn)
    with pytest.warns(UserWarning, match="from a user's code"):
        finetune("--epochs", "1")
    assert capsys.readouterr().err == "warning: the disk is full\n"


def test_a_model_is_needed_where_data_is_given(capsys):
    assert finetune("--data", "photos") == 2
    said = "error: what should learn from photos? Give --model FOLDER or NAME"
    assert capsys.readouterr().err.splitlines() == [said]
