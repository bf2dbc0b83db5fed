"""Runs in a process of their own: ended by signals, kept apart, and quick enough."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jobs import finetune, only_run

pytestmark = pytest.mark.usefixtures("job_folder")


COMMAND = [sys.executable, "-m", "frostline", "finetune"]


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
