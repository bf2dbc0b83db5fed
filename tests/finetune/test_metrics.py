from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

from frostline.errors import ConfigError, OutputError
from frostline.finetune.metrics import EpochMetrics, MetricsFile, open_metrics

FIELDS = {"loss": 0.5, "accuracy": 0.75, "held_out_loss": 0.25, "f1": None, "seconds": 0.1}


def line(epoch: int) -> EpochMetrics:
    return EpochMetrics(epoch=epoch, **FIELDS)


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with open_metrics(path) as metrics:
        metrics.append(line(1))
        metrics.append(line(2))
        lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert lines == [{"epoch": 1, **FIELDS}, {"epoch": 2, **FIELDS}]


@pytest.mark.parametrize(
    ("content", "epochs", "kept"),
    [
        pytest.param("1\n2\n3\n", 2, "1\n2\n", id="one-too-many"),
        pytest.param("1\n2\n3", 2, "1\n2\n", id="a-torn-line"),
        pytest.param("1\n2\n", 2, "1\n2\n", id="all"),
        pytest.param("1\n2\n", 0, "", id="none"),
        pytest.param("", 0, "", id="empty"),
    ],
)
def test_lines_after_the_last_checkpoint_are_cut_off(tmp_path, content, epochs, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with open_metrics(path) as metrics:
        metrics.keep(epochs)
        metrics.append(line(epochs + 1))
    assert path.read_text().startswith(kept + '{"epoch":')


@pytest.mark.skipif(sys.platform == "win32", reason="no lock there")
def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    again = (
        "import sys\n"
        "from pathlib import Path\n"
        "from frostline.finetune.metrics import open_metrics\n"
        "with open_metrics(Path(sys.argv[1])): print('opened')"
    )

    def another_process() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", again, str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    with open_metrics(path):
        assert "ConfigError: another process is training in" in another_process().stderr
        with (
            pytest.raises(ConfigError, match="another process is training in"),
            open_metrics(path),
        ):
            pass
    assert another_process().stdout == "opened\n"


def test_a_folder_that_is_gone(tmp_path):
    with (
        pytest.raises(OutputError, match=r"cannot write .*: No such file or directory"),
        open_metrics(tmp_path / "gone" / "metrics.jsonl"),
    ):
        pass


class FullDisk:
    """A file on a disk with room for a few bytes, or for none."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.room


@pytest.mark.parametrize("room", [pytest.param(0, id="no-room"), pytest.param(3, id="little-room")])
def test_a_full_disk_is_an_error_also_if_a_part_of_the_line_fits(tmp_path, room):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", FullDisk(room))
    with pytest.raises(OutputError, match="No space left on device; make room, then resume"):
        metrics.append(line(1))
