"""Small fine-tuning jobs, by the library and by the command, and what their runs leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frostline.cli import app
from frostline.finetune import job
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.interrupts import Interrupted
from frostline.finetune.watcher import Silent

FINISHED = {
    "base.json",
    "config.yaml",
    "frozen.json",
    "metrics.jsonl",
    "model.safetensors",
    "plan.yaml",
    "result.json",
    "status.json",
}
UNFINISHED = FINISHED - {"model.safetensors", "result.json"} | {"checkpoint.pt"}


def quick(out: Path, **fields: object) -> FinetuneConfig:
    return FinetuneConfig(**{"epochs": 3, "batch_size": 64, "lr": 3e-3, "out": out, **fields})


def finetune(*arguments: str) -> int:
    """The command in this process; gives its exit code."""
    return app.run(["finetune", *arguments])


class Calls(Silent):
    """Calls a function in step ``at``, counted over all epochs from 1."""

    def __init__(self, act: Callable[[], object], at: int) -> None:
        self.act = act
        self.left = at

    def step(self, loss: float) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def interrupt(config: FinetuneConfig, watcher: Silent) -> Path:
    """Start a job that the watcher stops; give its run."""
    with pytest.raises(Interrupted) as caught:
        job.start(config, watcher)
    return Path(caught.value.run)


def only_run(out: str = "runs") -> Path:
    (run,) = Path(out).iterdir()
    return run


def files(run: Path) -> set[str]:
    return {file.name for file in run.iterdir()}


def read(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / name).read_text())


def history(run: Path) -> list[dict[str, Any]]:
    """The run's metrics, without its times."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: line[name] for name in line if name != "seconds"} for line in lines]
