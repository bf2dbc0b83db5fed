from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.finetune import schedule_report as reports
from frostline.finetune.run_folder import RunFolder
from frostline.finetune.schedule_report import schedule_report, trained_by, write_timeline
from frostline.finetune.timeline import Stretch, TimedUnit, Timeline, timeline_of
from frostline.finetune.timeline_plot import can_plot


def stretch(step: int, steps: int, *frozen: str) -> Stretch:
    return Stretch(step=step, epoch=step // 4, steps=steps, frozen=frozen, why="because")


# Three epochs of four steps; the block has two tensors, of 30 and 10 scalars.
TIMELINE = Timeline(
    schedule={"schedule": "mine"},
    epochs=3,
    steps_per_epoch=4,
    units=(
        TimedUnit(name="b.weight", place="b", numel=30),
        TimedUnit(name="b.bias", place="b", numel=10),
        TimedUnit(name="head.weight", place="head", numel=5),
    ),
    stretches=(
        stretch(0, 2, "b.weight", "b.bias"),
        stretch(2, 5, "b.weight"),
        stretch(7, 5),
        stretch(12, 0, "head.weight"),
    ),
    events=(),
)


def test_shares_by_scalars_and_steps():
    assert TIMELINE.places == ("b", "head")
    # Epoch 1: two steps whole, two with 3/4 of it; epoch 2: three of four steps with 3/4.
    assert TIMELINE.by_epoch == ((0.875, 0.5625, 0.0), (0.0, 0.0, 0.0))


def test_what_froze_after_the_last_step_has_trained():
    assert TIMELINE.trained == {"b.weight", "b.bias", "head.weight"}
    first = replace(TIMELINE, stretches=TIMELINE.stretches[:2])
    assert first.trained == {"b.bias", "head.weight"}


def test_the_report_and_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "can_plot", lambda: False)
    report = schedule_report(TIMELINE)
    assert (report.name, report.transitions) == ("mine", 3)
    write_timeline(RunFolder(tmp_path), TIMELINE, pytest.fail)
    stored = json.loads((tmp_path / "timeline.json").read_text())
    assert stored["frozen_by_epoch"] == {"b": [0.875, 0.5625, 0.0], "head": [0.0, 0.0, 0.0]}
    assert stored["stretches"][1] == {
        "step": 2,
        "epoch": 0,
        "steps": 5,
        "frozen": ["b.weight"],
        "why": "because",
    }
    assert [file.name for file in tmp_path.iterdir()] == ["timeline.json"]


@pytest.mark.parametrize("grain", ["block", "tensor"])
def test_of_a_freezer(grain):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(2)), nn.Linear(4, 2))
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    schedules = {
        "block": "gradual-unfreeze",
        "tensor": [{"epoch": 0, "train": "2"}, {"epoch": 1, "train": ["1.bias", "2"]}],
    }
    freezer = fl.Freezer(
        model, optimizer, schedule=schedules[grain], steps_per_epoch=2, total_steps=4
    )
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        freezer.step()
    timeline = timeline_of(freezer, model, epochs=2)
    assert timeline.places == ("0", "1", "head")
    assert timeline.by_epoch[0] == (1.0, 1.0)
    assert timeline.by_epoch[1] == (1.0, 0.0 if grain == "block" else 16 / 20)
    with fl.freeze(nn.Linear(1, 1), "weight") as fixed:
        trained = trained_by(freezer, timeline, model, fixed)
    assert (trained.parameters, trained.of) == (10 + (20 if grain == "block" else 4), 50)


# --- the picture ------------------------------------------------------------------------------


def test_a_picture_where_matplotlib_is_installed(tmp_path):
    pytest.importorskip("matplotlib")
    assert can_plot()
    write_timeline(RunFolder(tmp_path), TIMELINE, pytest.fail)
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_fails_is_a_note(tmp_path, monkeypatch):
    def failing(timeline: Timeline, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no font")

    monkeypatch.setattr(reports, "can_plot", lambda: True)
    monkeypatch.setattr(reports, "plot", failing)
    said: list[str] = []
    write_timeline(RunFolder(tmp_path), TIMELINE, said.append)
    assert said == ["the timeline could not be drawn: no font"]
    assert [file.name for file in tmp_path.iterdir()] == ["timeline.json"]
