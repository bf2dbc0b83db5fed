"""What a failure leaves behind: nothing, or a run that can go on."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from jobs import UNFINISHED, Calls, files, history, quick, read

from frostline.errors import ConfigError, OutputError
from frostline.finetune import concluding, job
from frostline.finetune.watcher import Silent

pytestmark = pytest.mark.usefixtures("swift")


@pytest.fixture
def full_disk(monkeypatch):
    """Makes renames onto one file name fail, from the nth on, as on a disk without room."""

    def fill(name: str, *, after: int = 0) -> None:
        replace = Path.replace
        seen = []

        def failing(self: Path, target: Path) -> Path:
            if Path(target).name == name:
                seen.append(target)
                if len(seen) > after:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", failing)

    return fill


@pytest.mark.parametrize("name", sorted(UNFINISHED - {"metrics.jsonl"}))
def test_a_disk_that_is_full_from_the_start_leaves_nothing(tmp_path, full_disk, name):
    full_disk(name)
    with pytest.raises(OutputError, match=f"{name}.*No space left on device"):
        job.start(quick(tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "after", "epoch"),
    [
        pytest.param("checkpoint.pt", 2, 1, id="in-training"),
        pytest.param("model.safetensors", 0, 3, id="weights"),
        pytest.param("result.json", 0, 3, id="result"),
    ],
)
def test_a_disk_that_fills_up_can_be_mended(tmp_path, full_disk, monkeypatch, name, after, epoch):
    whole = job.start(quick(tmp_path / "whole"))
    full_disk(name, after=after)
    with pytest.raises(OutputError, match=f"{name}.*No space left on device; free some space"):
        job.start(quick(tmp_path / "runs"))
    monkeypatch.undo()
    (run,) = (tmp_path / "runs").iterdir()
    assert files(run) <= UNFINISHED | {"model.safetensors"}
    status = read(run, "status.json")
    assert (status["state"], status["resumable"], status["epoch"]) == ("failed", True, epoch)
    assert "No space left on device" in status["message"]
    assert status["next"] == f"frostline finetune --resume {run}"
    job.resume(run)
    weights = (run / "model.safetensors").read_bytes()
    assert weights == (whole.run / "model.safetensors").read_bytes()
    assert history(run) == history(whole.run)


def raise_(error: Exception) -> None:
    raise error


def test_if_the_status_cannot_be_written_either_the_first_error_is_shown(tmp_path, full_disk):
    full_disk("status.json", after=2)
    with pytest.raises(RuntimeError, match="a cable came loose"):
        job.start(quick(tmp_path), Calls(lambda: raise_(RuntimeError("a cable came loose")), 1))


def test_any_error_is_noted_and_the_run_can_go_on(tmp_path):
    with pytest.raises(RuntimeError, match="a cable came loose"):
        job.start(quick(tmp_path), Calls(lambda: raise_(RuntimeError("a cable came loose")), 12))
    (run,) = tmp_path.iterdir()
    status = read(run, "status.json")
    assert (status["state"], status["message"]) == ("failed", "a cable came loose")
    assert job.resume(run).proof.ok


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), id="device"),
        pytest.param(RuntimeError("DefaultCPUAllocator: can't allocate memory"), id="cpu"),
        pytest.param(MemoryError(), id="python"),
    ],
)
def test_running_out_of_memory_says_what_would_fit(tmp_path, error):
    with pytest.raises(ConfigError) as caught:
        job.start(quick(tmp_path), Calls(lambda: raise_(error), 2))
    message = str(caught.value)
    assert message.startswith("out of memory on cpu: a step of 64 samples needs about 1.9 MiB, of")
    assert "batch_size: 32 with accumulate: 2" in message
    assert "\n" not in message


def test_a_loss_that_is_not_finite_would_come_again(tmp_path):
    with pytest.raises(ConfigError, match="the loss became"):
        job.start(quick(tmp_path, lr=1e30))
    (run,) = tmp_path.iterdir()
    status = read(run, "status.json")
    assert (status["state"], status["resumable"]) == ("failed", False)
    assert status["next"] == f"frostline finetune {run}/config.yaml"


def test_savings_that_cannot_be_measured_spoil_nothing(tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        raise RuntimeError("cannot copy")

    class Notes(Silent):
        said: list[str] = []

        def note(self, text: str) -> None:
            self.said.append(text)

    monkeypatch.setattr(concluding, "measure_savings", failing)
    result = job.start(quick(tmp_path, epochs=1), Notes())
    assert Notes.said[-1] == "what freezing saved could not be measured: cannot copy"
    assert read(result.run, "result.json")["saved"] is None
    assert read(result.run, "status.json")["state"] == "finished"
