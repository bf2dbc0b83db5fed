"""check, compare, inspect and schedule on what ``frostline finetune`` takes, and on its runs."""

from __future__ import annotations

import json
from pathlib import Path

import finetune_files as given
import pytest
from jobs import finetune, only_run

from frostline.cli.app import run

pytestmark = [
    pytest.mark.usefixtures("swift"),
    # Of transformers and torch among themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

NETS = """
import torch
from torch import nn

def build():
    print("a word of the user's code")
    return nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, 2))

class Idle(nn.Sequential):
    def forward(self, x):
        return self[2](self[0](x))  # and never the one between

def idle():
    return Idle(nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 2))

def data():
    draw = torch.Generator().manual_seed(0)
    return torch.utils.data.TensorDataset(
        torch.randn(20, 8, generator=draw), torch.arange(20) % 2
    )
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data, and a run of each kind."""
    folder = tmp_path_factory.mktemp("place")
    given.vit(folder / "vit", labels=("blue", "green", "red"))
    given.images(folder / "photos", each=4)
    (folder / "nets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tuned = ("--model", "vit", "--data", "photos", "--train", "vit.layers.1")
        assert finetune(*tuned, "--train", "classifier", "--epochs", "1", "--out", "tuned") == 0
        code = ("--model", "nets.py:build", "--data", "nets.py:data", "--train", "2")
        assert finetune(*code, "--epochs", "1", "--out", "code") == 0
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "80")


def checked(
    capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0
) -> dict[str, object]:
    capsys.readouterr()
    assert run(["check", *arguments, "--json"]) == code
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_check_takes_a_pretrained_folder(capsys):
    found = checked(capsys, "vit", "--train", "classifier")
    assert (found["errors"], found["plan"]) == (0, [{"freeze": "**"}, {"train": "classifier"}])


def test_check_tries_a_step_on_data(capsys):
    found = checked(capsys, "nets.py:idle", "--data", "nets.py:data", "--freeze", "0", code=1)
    assert {finding["where"] for finding in found["findings"]} == {"1.weight", "1.bias"}
    assert checked(capsys, "nets.py:idle", "--freeze", "0")["findings"] == []


@pytest.mark.parametrize("out", ["tuned", "code"])
def test_check_of_a_run_has_its_plan_and_its_data(capsys, out):
    folder = only_run(out)
    found = checked(capsys, str(folder))
    assert found["errors"] == 0
    assert found["plan"][0] == {"freeze": "**"}
    assert run(["check", str(folder), "--data", "photos"]) == 2
    assert "has its own data; leave it out" in capsys.readouterr().err


def test_inspect_shows_the_whole_model_of_a_run_under_its_plan(capsys):
    folder = only_run("tuned")
    assert run(["inspect", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["type"]) == ("run", "ViTForImageClassification")
    trained = {tensor["name"] for tensor in found["tensors"] if tensor["frozen"] is False}
    assert {".".join(name.split(".")[:3]) for name in trained} == {
        "vit.layers.1",
        "classifier.weight",
        "classifier.bias",
    }
    assert len(found["tensors"]) == 40


def test_inspect_of_a_run_that_has_left_nothing_yet_says_how_to_go_on(capsys, tmp_path):
    for name in ("config.yaml", "plan.yaml"):
        (tmp_path / name).write_text((only_run("tuned") / name).read_text())
    assert run(["inspect", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"to finish it: frostline finetune --resume {tmp_path}\n")


def test_inspect_of_a_run_shows_another_plan(capsys):
    assert run(["inspect", str(only_run("tuned")), "--train", "vit.layernorm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(tensor["frozen"] is False for tensor in found["tensors"]) == 2


def test_compare_takes_a_pretrained_model_and_data(capsys):
    few = ("--repeats", "2", "--steps", "2", "--optimizer", "AdamW")
    assert run(["compare", "--model", "vit", "--data", "photos", "--json", *few]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["data"], found["batch_size"]) == ("photos", 9)
    assert len(found["frozen"]) == 38
    cases = {case["way"]: case for case in found["cases"]}
    for way in ("grad", "optimizer", "best", "replay"):
        assert [cases[way]["changed"][name] for name in found["frozen"]] == [0.0] * 38
    assert cases["replay"]["replay"]["is_same"]
    assert cases["best"]["gradient_bytes"] == 99 * 4


def test_many_tensors_are_shown_by_module(capsys):
    few = ("--repeats", "2", "--steps", "2")
    assert run(["compare", "--model", "vit", "--data", "photos", *few]) == 0
    printed = capsys.readouterr().out
    assert "❄ vit.layers.0.attention (8)" in printed
    assert "● classifier.weight" in printed
    assert "Next: frostline finetune --model vit --data photos" in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--model", "vit"], "trained on? Give --data FOLDER", id="no data"),
        pytest.param(
            ["--model", "nets.py:build", "--data", "nets.py:data"],
            "what should be frozen of nets.py:build? Give --freeze NAME",
            id="no head",
        ),
        pytest.param(["--data", "./no-such"], "there is no such file or folder", id="no such data"),
    ],
)
def test_what_compare_cannot_do_is_one_line(capsys, arguments, said):
    assert run(["compare", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err.splitlines()[-1]


def test_a_first_schedule_for_a_pretrained_model(capsys):
    assert run(["schedule", "init", "vit"]) == 0
    assert "2 modules (ViTLayer) in vit.layers" in capsys.readouterr().out


def test_what_code_prints_is_not_among_the_results(capsys):
    assert run(["inspect", "nets.py:build", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["type"] == "Sequential"
    assert "a word of the user's code" in printed.err
