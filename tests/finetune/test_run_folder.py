from __future__ import annotations

import errno
import os
import re
from datetime import datetime
from pathlib import Path

import pytest

from frostline.errors import ConfigError, OutputError
from frostline.finetune import run_folder
from frostline.finetune.run_folder import PLAN, RunFolder, Status, create_run


def make(out: Path, name: str = "digits-cnn") -> RunFolder:
    return create_run(out, name, lambda run: run.write(PLAN, b"frostline: 1"))


def test_the_name_says_what_and_when(tmp_path):
    run = make(tmp_path / "new" / "runs")
    assert run.path.parent == tmp_path / "new" / "runs"
    assert re.fullmatch(r"digits-cnn-\d{8}-\d{6}", run.path.name)
    assert [file.name for file in run.path.iterdir()] == ["plan.yaml"]


def test_runs_of_one_second_do_not_meet(tmp_path, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2025, 1, 31, 12, 30, 5)

    monkeypatch.setattr(run_folder, "datetime", Clock)
    names = [make(tmp_path).path.name for _ in range(3)]
    assert names == [
        "digits-cnn-20250131-123005",
        "digits-cnn-20250131-123005-2",
        "digits-cnn-20250131-123005-3",
    ]
    (tmp_path / "digits-cnn-20250131-123005-4").touch()
    assert make(tmp_path).path.name == "digits-cnn-20250131-123005-5"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("model.py:build", "model.py-build", id="factory"),
        pytest.param("a/b: c", "a-b-c", id="separators"),
        pytest.param("../..", "run", id="only-dots"),
        pytest.param("netz-für-ziffern", "netz-für-ziffern", id="letters"),
        pytest.param("x" * 300, "x" * 60, id="long"),
    ],
)
def test_any_name_makes_a_folder(tmp_path, name, expected):
    path = make(tmp_path, name).path
    assert path.parent == tmp_path
    assert re.sub(r"-\d{8}-\d{6}$", "", path.name) == expected


@pytest.mark.parametrize("out", [pytest.param("runs", id="here"), pytest.param("a/b", id="below")])
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), id="full"),
        pytest.param(OutputError("cannot write"), id="ours"),
        pytest.param(KeyboardInterrupt(), id="ctrl-c"),
    ],
)
def test_if_the_first_files_fail_nothing_is_left(tmp_path, error, out):
    def fill(run):
        run.write(PLAN, b"x")
        raise error

    with pytest.raises((OutputError, KeyboardInterrupt)):
        create_run(tmp_path / out, "digits", fill)
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_if_the_first_files_fail(tmp_path):
    def fill(run):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "runs").mkdir()
    with pytest.raises(
        OutputError, match="No space left on device; choose another place with --out"
    ):
        create_run(tmp_path / "runs", "digits", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    "out", [pytest.param("file", id="it"), pytest.param("file/a/b", id="above")]
)
def test_a_file_in_the_way(tmp_path, out):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot make a run folder in .*: a file is in the way"):
        make(tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied; choose another place with --out"):
            make(tmp_path / "runs")
    finally:
        tmp_path.chmod(0o700)


def test_commands_can_be_pasted_into_a_shell(tmp_path):
    run = RunFolder(Path("my runs/it's"))
    path = "'my runs/it'\"'\"'s"
    assert run.resume_command == f"frostline finetune --resume {path}'"
    assert run.restart_command == f"frostline finetune {path}/config.yaml'"
    assert run.inspect_command == f"frostline inspect {path}/model.safetensors'"


def status(*, state, resumable):
    return Status(
        state=state, epoch=1, epochs=2, resumable=resumable, message="the reason", next="command"
    )


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_what_was_cut_short_may_be_resumed(tmp_path, state):
    run = make(tmp_path)
    run.set_status(status(state=state, resumable=True))
    run.refuse_to_resume()


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_what_came_to_its_end_may_not(tmp_path, state):
    run = make(tmp_path)
    run.set_status(status(state=state, resumable=False))
    message = f"can't be resumed, it is {state}: the reason; to train anew: frostline finetune "
    with pytest.raises(ConfigError, match=message):
        run.refuse_to_resume()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "No such file", id="missing"),
        pytest.param(b'{"state": "runn', "it is damaged", id="truncated"),
        pytest.param(b"\xff\xfe", "it is damaged", id="binary"),
        pytest.param(b"[]", "no object", id="a-list"),
    ],
)
def test_a_folder_that_is_no_run(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(
        ConfigError, match=f"is not a run that can be resumed: status.json: {reason}"
    ):
        RunFolder(tmp_path).refuse_to_resume()
