from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from frostline.cli.app import run
from frostline.replay.cache import list_entries
from frostline.replay.folder_store import FolderStore

NEW, OLD = "0" * 32, "f" * 32
Capture = pytest.CaptureFixture[str]


def fill(folder: Path) -> Path:
    """Two shelves, one of them not used since 1970; and a file of somebody else."""
    with FolderStore(folder) as store:
        for key, note in ((NEW, "layer 3"), (OLD, "layer 5")):
            digests = [number.to_bytes(16, "big") for number in range(4)]
            store.shelf(key, 8, note=note).add(digests, torch.zeros(4, 8, dtype=torch.uint8))
    for path in (folder / OLD).iterdir():
        os.utime(path, (1_000_000, 1_000_000))
    (folder / "mine.txt").write_text("mine")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "80")
    return fill(tmp_path / "features")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def keys(folder: Path) -> list[str]:
    return [entry.key for entry in list_entries(folder)]


def test_list_shows_the_last_used_first(folder: Path, capsys: Capture) -> None:
    assert run(["cache", "list", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["shelf", "records", "bytes", "last", "used", "what"]
    assert lines[2].split()[:2] == ["000000000000", "4"]
    assert re.search(r" [\d.]+ s ago +layer 3$", lines[2].rstrip())
    assert re.search(r" \d[\d,]+ days ago +layer 5$", lines[3].rstrip())
    assert lines[4].startswith("8 records, ")
    assert lines[4].endswith(f", in {folder}.")


def test_list_as_json(folder: Path, capsys: Capture) -> None:
    assert run(["cache", "list", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(folder)
    assert [entry["key"] for entry in found["entries"]] == [NEW, OLD]
    assert found["nbytes"] == sum(entry["nbytes"] for entry in found["entries"])
    old = found["entries"][1]
    assert (old["entries"], old["note"]) == (4, "layer 5")
    assert old["last_used"] == "1970-01-12T13:46:40+00:00"


def test_list_by_age(folder: Path, capsys: Capture) -> None:
    assert run(["cache", "list", str(folder), "--older-than", "30d", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["key"] for entry in found["entries"]] == [OLD]


def test_clear_with_yes_leaves_what_is_not_recorded(folder: Path, capsys: Capture) -> None:
    assert run(["cache", "clear", str(folder), "--yes"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"Deleted 2 shelves in {folder}: ")
    assert captured.err == ""
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_clear_by_age(folder: Path, capsys: Capture) -> None:
    assert run(["cache", "clear", str(folder), "--older-than", "4w", "-y"]) == 0
    assert capsys.readouterr().out.startswith("Deleted 1 shelf in ")
    assert keys(folder) == [NEW]


def test_clear_as_json(folder: Path, capsys: Capture) -> None:
    held = sum(entry.nbytes for entry in list_entries(folder))
    assert run(["cache", "clear", str(folder), "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(folder),
        "cleared": 2,
        "freed_bytes": held,
    }


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        pytest.param("y\n", [], id="y"),
        pytest.param("YES\n", [], id="YES"),
        pytest.param("n\n", [NEW, OLD], id="n"),
        pytest.param("\n", [NEW, OLD], id="return"),
    ],
)
def test_clear_asks(
    folder: Path, capsys: Capture, answers: Callable[[str], None], answer: str, left: list[str]
) -> None:
    answers(answer)
    assert run(["cache", "clear", str(folder)]) == 0
    captured = capsys.readouterr()
    assert "8 records, " in captured.err
    assert "Delete this? [y/N]" in captured.err
    assert bool(captured.out) is not bool(left)
    assert keys(folder) == left


def test_clear_does_nothing_where_nobody_can_answer(
    folder: Path, capsys: Capture, answers: Callable[[str], None]
) -> None:
    answers("")
    assert run(["cache", "clear", str(folder)]) == 2
    assert capsys.readouterr().err.endswith(
        "error: nothing was deleted: give --yes where nobody can answer\n"
    )
    assert keys(folder) == [NEW, OLD]


def test_the_default_folder_is_that_of_finetune(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    assert run(["cache", "list"]) == 0
    assert capsys.readouterr().out == f"0 records, 0 B, in {tmp_path}/cache/replay.\n"
    assert not (tmp_path / "cache").exists()
    fill(tmp_path / "cache" / "replay")
    assert run(["cache", "clear", "--yes"]) == 0
    assert keys(tmp_path / "cache" / "replay") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["list", "nowhere"], "there is no folder 'nowhere'", id="no-folder"),
        pytest.param(["clear", "nowhere", "--yes"], "there is no folder", id="nothing-to-clear"),
        pytest.param(
            ["list", "--older-than", "soon"],
            "--older-than: got 'soon', expected an age such as 12h, 30d or 4w",
            id="no-age",
        ),
        pytest.param(
            ["list", "--older-than", "9" * 30 + "w"], "longer than time can be", id="long-age"
        ),
        pytest.param(
            ["clear", ".", "--json"], "--json asks no questions: give --yes", id="json-asks"
        ),
        pytest.param(["empty"], "No such command 'empty'", id="no-such-command"),
    ],
)
def test_a_wrong_call_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["cache", *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith("error: ")
    assert message in captured.err


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["alone", "--help"])
def test_help_names_both_commands(arguments: list[str], capsys: Capture) -> None:
    assert run(["cache", *arguments]) == 0
    out, err = capsys.readouterr()
    assert "│ list " in out
    assert "│ clear " in out
    assert err == ""


@pytest.mark.parametrize("command", ["list", "clear"])
def test_every_help_has_an_example_and_the_next_command(command: str, capsys: Capture) -> None:
    assert run(["cache", command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Example: frostline cache {command} --older-than 30d" in out
    assert "Next: frostline cache" in out
