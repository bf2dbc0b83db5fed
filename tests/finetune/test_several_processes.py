"""The command under torchrun: two processes, one run, one proof."""

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
from jobs import FINISHED, files, history, only_run, read

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]

# Both processes write down what they end up with, beside the run that one of them writes.
NET = """
import os
from frostline.finetune.networks import DigitsCNN

rank = os.environ["RANK"]

class Watched(DigitsCNN):
    "Writes down its statistics when it is about to be scored."

    def train(self, mode=True):
        if not mode:
            with open(f"scored-{rank}", "a") as file:
                print(*(float(buffer.double().sum()) for buffer in self.buffers()), file=file)
        return super().train(mode)

def build():
    net = Watched()
    with open(f"built-{rank}", "w") as file:
        file.write(rank)
    return net
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NET)


def command(port: int, *arguments: str) -> dict[str, Any]:
    return {
        "args": [*TORCHRUN, "--master-port", str(port), "-m", "frostline", "finetune", *arguments],
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


ARGUMENTS = ("--model", "nets.py:build", "--lr", "0.01")
PLAN = ("--train", "head", "--train", "block3")


def run_whole(*options: str, epochs: int) -> subprocess.CompletedProcess[str]:
    arguments = (*ARGUMENTS, *options, "--epochs", str(epochs), "--json")
    ended = subprocess.run(**command(free_port(), *arguments), timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended


def test_two_processes_make_one_run():
    ended = run_whole("--replay", "memory", *PLAN, epochs=3)
    found = json.loads(ended.stdout)  # one object: only one of them speaks
    assert ended.stderr.count("epoch 3/3") == 1
    whole = only_run()
    assert files(whole) == FINISHED
    assert found["proof"]["ok"]
    assert (found["proof"]["tensors"], found["accuracy"]["held_out"]) == (18, 225)
    assert found["saved"] is None
    assert sorted(path.name for path in Path().glob("built-*")) == ["built-0", "built-1"]
    one, other = (Path(f"scored-{rank}").read_text().splitlines() for rank in (0, 1))
    assert one == other
    assert len(set(one)) >= 4  # before the first epoch, and after each
    losses = [line["loss"] for line in history(whole)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plan", "schedule"])
def test_two_processes_go_on_bit_for_bit(how):
    schedule = ("--schedule", "gradual-unfreeze", "--freeze", "stem", "--replay", "off")
    options = schedule if how == "schedule" else ("--replay", "memory", *PLAN)
    epochs = 30  # a schedule goes by their number, so it can't be changed in between
    run_whole(*options, epochs=epochs)
    whole = only_run()
    with subprocess.Popen(
        **command(free_port(), *ARGUMENTS, *options, "--epochs", str(epochs), "--out", "cut")
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("epoch 1/"):
                break
        process.send_signal(signal.SIGTERM)  # torchrun hands it to both
        process.communicate(timeout=60)
    run = only_run("cut")
    assert read(run, "status.json")["state"] == "interrupted"
    ended = subprocess.run(**command(free_port(), "--resume", str(run)), timeout=120)
    assert ended.returncode == 0, ended.stderr
    weights = [(one / "model.safetensors").read_bytes() for one in (run, whole)]
    assert weights[0] == weights[1]
    assert history(run) == history(whole)


@pytest.mark.slow
def test_a_wrong_call_ends_all_of_them_with_its_reason():
    began = time.monotonic()
    ended = subprocess.run(
        **command(free_port(), *ARGUMENTS, *PLAN, "--out", "nets.py"), timeout=60
    )
    assert ended.returncode != 0
    assert "cannot make a run folder in nets.py: a file is in the way" in ended.stderr
    assert time.monotonic() - began < 60
