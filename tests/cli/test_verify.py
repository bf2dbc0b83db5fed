from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deltas import tuned
from safetensors.torch import save_file

import frostline as fl
from frostline.checkpoint import save_trained
from frostline.cli.app import run

BROKEN = (
    "The plan was not kept: 1 tensor that should be bitwise the same in both is not. What may"
    " differ: --ignore SELECTOR"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, two tuned checkpoints, a delta and plans; the test runs in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    base, model = tuned()
    with torch.no_grad():
        model.head.weight.copy_(base.head.weight + 0.25)
        model.head.bias.copy_(base.head.bias)
    save_file(base.state_dict(), "base.safetensors")
    torch.save(model.state_dict(), "tuned.pt")
    save_trained(model, "delta.safetensors")
    with torch.no_grad():
        model.stem.bias[0] = math.nan
    torch.save(model.state_dict(), "broken.pt")
    fl.Plan.all_but("head").save("plan.yaml")
    return tmp_path


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_a_kept_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "base.safetensors", "tuned.pt", "--plan", "plan.yaml"]) == 0
    assert lines(capsys) == [
        "changed head.weight  by at most 0.25",
        "24 tensors the same, 1 changed; 3.3 KiB read.",
        "The plan was kept: 23 frozen tensors, bit for bit.",
    ]


def test_a_broken_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "base.safetensors", "broken.pt", "--plan", "plan.yaml"]) == 1
    assert lines(capsys) == [
        "changed stem.bias    by at most nan  FROZEN",
        "changed head.weight  by at most 0.25",
        "23 tensors the same, 2 changed; 3.3 KiB read.",
        BROKEN,
    ]


def test_what_may_differ(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["base.safetensors", "broken.pt", "--plan", "plan.yaml", "--ignore", "stem.bias"]
    assert run(["verify", *arguments]) == 0
    assert "The plan was kept" in lines(capsys)[-1]


def test_without_a_plan_it_tells_what_changed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", "base.safetensors", "broken.pt"]) == 0
    assert lines(capsys)[-1] == (
        "Next: frostline verify base.safetensors broken.pt --plan plan.yaml"
    )


@pytest.mark.parametrize(("base", "code"), [("base.safetensors", 0), ("broken.pt", 1)])
def test_a_delta_brings_its_plan(
    folder: Path, capsys: pytest.CaptureFixture[str], base: str, code: int
) -> None:
    assert run(["verify", base, "delta.safetensors"]) == code
    assert ("The plan was kept" in lines(capsys)[-1]) is (code == 0)


def test_json_is_one_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "base.safetensors", "broken.pt", "--plan", "plan.yaml", "--json"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert {
        key: found[key] for key in ("kept", "same", "frozen", "changed", "added", "missing")
    } == {
        "kept": False,
        "same": 23,
        "frozen": 23,
        "changed": ["stem.bias", "head.weight"],
        "added": [],
        "missing": [],
    }
    assert found["broken"] == ["stem.bias"]
    assert found["plan"] == [{"freeze": "**"}, {"train": "head"}]
    assert found["differences"][0] == {
        "name": "stem.bias",
        "state": "changed",
        "frozen": True,
        "breaks": True,
        "max_abs": None,
        "reason": "",
    }


def test_many_differences_are_cut_short(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({f"w{n}": torch.zeros(1) for n in range(50)}, "a.safetensors")
    save_file({f"w{n}": torch.ones(1) for n in range(50)}, "b.safetensors")
    assert run(["verify", "a.safetensors", "b.safetensors"]) == 0
    found = lines(capsys)
    assert found[40:42] == [
        "… and 10 more; --json lists all",
        "0 tensors the same, 50 changed; 400 B read.",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["base.safetensors", "no.pt"], "there is no file no.pt", id="missing"),
        pytest.param(["base.safetensors", "plan.yaml"], "plan.yaml is damaged or not", id="other"),
        pytest.param(["base.safetensors"], "Missing argument", id="one"),
        pytest.param(
            ["base.safetensors", "tuned.pt", "--plan", "no.yaml"], "cannot read the plan", id="plan"
        ),
        pytest.param(
            ["base.safetensors", "tuned.pt", "--ignore", "nope"], "'nope' matches none", id="ignore"
        ),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert said in captured.err


@pytest.mark.parametrize("command", ["verify", "merge"])
def test_help_shows_an_example_and_loads_no_torch(command: str) -> None:
    code = (
        f"import sys; from frostline.cli.app import run; run(['{command}', '--help']);"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert f"Example: frostline {command} base" in shown
    assert "Next:" in shown
