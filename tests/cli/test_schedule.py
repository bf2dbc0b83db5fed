"""``frostline schedule``, and ``frostline finetune --schedule``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jobs import finetune, only_run, read

from frostline.cli.app import run
from frostline.schedules import load, registry

pytestmark = pytest.mark.usefixtures("job_folder")


def test_list_has_a_line_for_each(capsys):
    assert run(["schedule", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(registry)
    assert all(line.endswith(".") for line in lines)


def test_list_as_json_has_the_options(capsys):
    assert run(["schedule", "list", "--json"]) == 0
    methods = json.loads(capsys.readouterr().out)["schedules"]
    assert [method["name"] for method in methods] == list(registry)
    lisa = next(method for method in methods if method["name"] == "lisa")
    assert lisa["options"] == {"layers": None, "period": 5, "seed": 0}


def test_a_first_schedule_is_written_and_trained_by(capsys):
    assert run(["schedule", "init", "digits-cnn", "--out", "mine.yaml"]) == 0
    assert capsys.readouterr().out == ""
    assert load(Path("mine.yaml")).phases[1].epoch == 1
    assert finetune("--schedule", "mine.yaml", "--epochs", "2", "--batch-size", "64") == 0
    assert read(only_run(), "timeline.json")["frozen_by_epoch"]["block3"] == [1.0, 0.0]
    assert run(["schedule", "init", "digits-cnn", "--out", "mine.yaml"]) == 2
    assert "error: mine.yaml is there already" in capsys.readouterr().err


def test_a_first_schedule_on_stdout(capsys):
    assert run(["schedule", "init", "digits-cnn"]) == 0
    plain = capsys.readouterr().out
    assert plain.startswith("# A first schedule for DigitsCNN")
    assert run(["schedule", "init", "digits-cnn", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schedule": plain, "out": None}


@pytest.mark.parametrize("name", registry)
def test_every_name_works(capsys, name):
    arguments = ("--schedule", name, "--epochs", "2", "--batch-size", "128", "--replay", "off")
    assert finetune(*arguments) == 0
    out = capsys.readouterr().out
    assert f"schedule {name}: " in out
    assert "· trains  ░▒▓ in part  █ frozen" in out
    assert max(map(len, out.splitlines())) <= 80
    found = read(only_run(), "result.json")
    assert found["proof"]["ok"] is True
    assert found["saved"] is None
    assert found["schedule"]["name"] == name
    assert found["schedule"]["places"] == ["stem", "block1", "block2", "block3", "head"]


def test_json_holds_the_chart_and_nothing_else_is_printed(capsys):
    assert finetune("--schedule", "surgical", "--epochs", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == read(only_run(), "result.json")
    assert found["schedule"]["frozen"] == [[1.0], [0.0], [1.0], [1.0], [0.0]]
    assert found["schedule"]["transitions"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param("autofreez", "there is no schedule 'autofreez'. Nearest", id="misspelt"),
        pytest.param("none.yaml", "cannot read the schedule none.yaml", id="no-file"),
        pytest.param("bad.yaml", "lisa: period must be a whole number", id="option"),
        pytest.param("lisa --train head", "What the plan freezes", id="nothing-left"),
        pytest.param("hed.yaml", "selector 'hed' matches none", id="selector"),
        pytest.param("empty.yaml", "empty.yaml is empty", id="empty"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(capsys, arguments, message):
    Path("bad.yaml").write_text("schedule: lisa\nperiod: 0\n")
    Path("hed.yaml").write_text("- {epoch: 0, train: hed}\n")
    Path("empty.yaml").touch()
    assert finetune("--schedule", *arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err.splitlines()[-1]
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert not Path("runs").exists()
