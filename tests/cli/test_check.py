from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from frostline.cli.app import run

NETS = """
from torch import nn

def by_hand():
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, 2))
    model[:2].requires_grad_(False)
    return model

def noisy():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.1)), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return str(path)


def test_an_error_is_shown_and_gives_exit_code_1(
    nets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", f"{nets}:by_hand"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("FL102 1: BatchNorm1d is frozen but in train mode")
    assert lines[1] == (
        "1 finding: 1 error, 0 warnings. Each code has a page, such as docs/checks/FL102.md"
    )


def test_a_warning_alone_is_exit_code_0(nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", f"{nets}:noisy"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("FL104 0.1: Dropout is on in a frozen part")
    assert "1 finding: 0 errors, 1 warning." in out


@pytest.mark.parametrize("option", ["--freeze", "--train"])
def test_what_frostline_freezes_is_clean(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "digits-cnn", option, "head"]) == 0
    assert capsys.readouterr().out == "No findings.\n"


def test_json_is_one_object(nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", f"{nets}:by_hand", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["errors"], found["warnings"], found["plan"]) == (1, 0, None)
    (finding,) = found["findings"]
    assert {key: finding[key] for key in ("code", "name", "where", "severity")} == {
        "code": "FL102",
        "name": "moving-statistics",
        "where": "1",
        "severity": "error",
    }
    assert set(finding) == {"code", "name", "where", "message", "fix", "severity"}


def test_a_plan_file_is_applied_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("frostline: 1\nrules: [{freeze: fc1.bias}, {freeze: fc1}]\n")
    assert run(["check", "tutorial", "--plan", str(plan), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"] == [{"freeze": "fc1.bias"}, {"freeze": "fc1"}]
    assert [f["code"] for f in found["findings"]] == ["FL410"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["tutorial", "--freeze", "fc3"], "'fc3' matches none", id="selector"),
        pytest.param(["tutorial", "--freeze", "fc1", "--train", "fc2"], "can't go", id="two ways"),
        pytest.param(["no-such-net.py:build"], "there is no file", id="model"),
        pytest.param(["./digit-cnn"], "did you mean 'digits-cnn'?", id="misspelt model"),
        pytest.param(["tutorial", "--plan", "no.yaml"], "cannot read the plan", id="plan"),
        pytest.param([], "Missing argument", id="no model"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert said in captured.err


def test_help_shows_an_example_and_loads_no_torch() -> None:
    code = (
        "import sys; from frostline.cli.app import run; run(['check', '--help']);"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert "frostline check digits-cnn --train head" in shown
    assert "Next:" in shown
