from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import frostline.cli.app as cli
from frostline.errors import FrostlineError, FrozenChangedError, SelectorError

COMMAND = [sys.executable, "-m", "frostline"]
# Unbuffered, a write fails where it is made; the hard case is one that fails at exit.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def raising(error: BaseException) -> Callable[..., Any]:
    def stand_in(*args: object, **kwargs: object) -> None:
        raise error

    return stand_in


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        pytest.param(
            SelectorError("selector 'fc3' matches nothing"),
            2,
            "error: selector 'fc3' matches nothing",
            id="what frostline refuses",
        ),
        pytest.param(
            FrozenChangedError("fc1.weight moved", []),
            1,
            "error: fc1.weight moved",
            id="what does not hold",
        ),
        pytest.param(
            FrostlineError("[bold]x[/bold] of :smile: " + "a long path/" * 20),
            2,
            "error: [bold]x[/bold] of :smile: " + "a long path/" * 20,
            id="no markup, no line breaks",
        ),
        pytest.param(
            RuntimeError("mat1 and mat2 do not fit"),
            2,
            "error: unexpected RuntimeError: mat1 and mat2 do not fit (--debug shows where)",
            id="what nobody foresaw",
        ),
    ],
)
def test_an_error_is_one_line_on_stderr(
    error: Exception,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "app", raising(error))
    assert cli.run([]) == code
    assert capsys.readouterr() == ("", f"{line}\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(KeyboardInterrupt(), 130, id="Ctrl-C"),
        pytest.param(typer.Exit(1), 1, id="a command's own code"),
        pytest.param(typer.Exit(), 0, id="a command that stops early"),
    ],
)
def test_a_command_that_stops_says_nothing(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def inspect() -> None:
        raise error

    monkeypatch.setattr(cli.app, "registered_commands", [])
    cli.app.command()(inspect)
    assert cli.run(["inspect"]) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(
            ["inspct", "tutorial"],
            "error: No such command 'inspct'. Did you mean 'inspect'? See 'frostline --help'",
            id="misspelt command",
        ),
        pytest.param(
            ["inspect"],
            "error: Missing argument 'MODEL'. See 'frostline inspect --help'",
            id="no argument",
        ),
        pytest.param(
            ["inspect", "tutorial", "--dpth", "1"],
            "error: No such option: --dpth (Possible options: --depth)."
            " See 'frostline inspect --help'",
            id="misspelt option",
        ),
        pytest.param(
            ["inspect", "tutorial", "--depth", "-1"],
            "error: Invalid value for '--depth': Input should be greater than or equal to 0."
            " See 'frostline inspect --help'",
            id="value out of range",
        ),
    ],
)
def test_a_wrong_call_is_one_line_too(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    assert capsys.readouterr() == ("", f"{line}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--debug", "inspect", "nope.py:build"], id="before the command"),
        pytest.param(["inspect", "--debug", "nope.py:build"], id="after the command"),
        pytest.param(["inspect", "nope.py:build", "--debug"], id="at the end"),
    ],
)
def test_debug_shows_the_traceback_from_any_place(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Traceback (most recent call last):")
    assert printed.err.splitlines()[-1].startswith("error: model 'nope.py:build': there is no file")


def test_after_two_dashes_debug_is_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", "--", "--debug"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert "model '--debug': there is no such folder" in printed


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=["alone", "--help", "-h"])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 0
    out, err = capsys.readouterr()
    listed = re.findall(r"^│ (\w+) ", out, re.MULTILINE)
    assert listed[:3] == ["finetune", "compare", "inspect"]
    assert len(listed) == len(cli.app.registered_commands) + len(cli.app.registered_groups)
    assert err == ""


@pytest.mark.parametrize("command", ["", "finetune", "compare", "inspect", "cache"])
def test_every_help_has_an_example_and_the_next_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"Example: frostline {command}\b", out)
    assert re.search(r"Next: frostline \w+", out)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == "frostline 0.1.0\n"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--version"], id="a line"),
        pytest.param(["--help"], id="a page, drawn by typer"),
        pytest.param(["inspect", "tutorial"], id="a table, drawn by rich"),
        pytest.param(["inspect", "digits-cnn", "--json"], id="more than a pipe's first read"),
    ],
)
def test_a_reader_that_leaves_is_no_error(arguments: list[str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "arguments", [["--version"], ["inspect", "tutorial"]], ids=["a line", "a table"]
)
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        2,
        "error: unexpected OSError: [Errno 28] No space left on device (--debug shows where)\n",
    )


def test_ctrl_c_outside_of_a_command_exits_130_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", raising(KeyboardInterrupt()))
    assert cli.run([]) == 130
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_exits_130_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def build():\n"
        "    pathlib.Path('started').touch()\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [*COMMAND, "inspect", "slow.py:build"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def test_help_takes_less_than_four_tenths_of_a_second() -> None:
    # CPU time, which neighbours on a busy machine do not lengthen; the first run fills caches.
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*COMMAND, "--help"], check=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.4


def test_a_terminal_without_unicode_gets_an_answer() -> None:
    done = subprocess.run(
        [*COMMAND, "inspect", "tutorial", "--depth", "0"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "trainable" in done.stdout
