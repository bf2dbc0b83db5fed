"""A run that was cut short goes on as if it had not been."""

from __future__ import annotations

import copy
import gc
import random
import signal
from pathlib import Path

import pytest
from jobs import FINISHED, UNFINISHED, Calls, files, history, interrupt, quick, read

from frostline.errors import ConfigError
from frostline.finetune import job
from frostline.finetune.interrupts import Interrupted
from frostline.finetune.watcher import Silent

pytestmark = pytest.mark.usefixtures("swift")


class StopsWhileMeasuring(Silent):
    def measuring(self) -> None:
        signal.raise_signal(signal.SIGINT)


# 11 steps an epoch.
@pytest.mark.parametrize(
    ("watcher", "epochs_done"),
    [
        pytest.param(Calls(lambda: signal.raise_signal(signal.SIGINT), 1), 0, id="first-step"),
        pytest.param(Calls(lambda: signal.raise_signal(signal.SIGTERM), 15), 1, id="sigterm"),
        pytest.param(Calls(lambda: signal.raise_signal(signal.SIGINT), 33), 2, id="last-step"),
        pytest.param(StopsWhileMeasuring(), 3, id="while-measuring"),
    ],
)
@pytest.mark.parametrize("replay", ["on", "memory", "off"])
def test_interrupted_and_resumed_is_the_same_bit_for_bit(tmp_path, watcher, epochs_done, replay):
    watcher = copy.copy(watcher)  # it counts down
    whole = job.start(quick(tmp_path / "whole", replay="off"))
    run = interrupt(quick(tmp_path / "cut", replay=replay), watcher)
    assert files(run) - {"model.safetensors"} == UNFINISHED
    assert read(run, "status.json") == {
        "state": "interrupted",
        "epoch": epochs_done,
        "epochs": 3,
        "resumable": True,
        "message": "stopped by a signal",
        "next": f"frostline finetune --resume {run}",
    }
    assert len(history(run)) == epochs_done
    resumed = job.resume(run)
    assert resumed.run == run
    assert files(run) == FINISHED
    for name in ("model.safetensors", "plan.yaml", "frozen.json"):
        assert (run / name).read_bytes() == (whole.run / name).read_bytes()
    assert history(run) == history(whole.run)
    assert resumed.accuracy == whole.accuracy
    assert resumed.proof.ok
    assert resumed.proof.tensors == whole.proof.tensors == 18
    assert (resumed.replay.place is None) is (replay == "off")


def test_a_run_may_be_cut_short_more_than_once(tmp_path):
    whole = job.start(quick(tmp_path / "whole"))
    run = interrupt(quick(tmp_path / "cut"), Calls(lambda: signal.raise_signal(signal.SIGINT), 12))
    with pytest.raises(Interrupted) as caught:
        job.resume(run, Calls(lambda: signal.raise_signal(signal.SIGINT), 14))
    assert (caught.value.epoch, caught.value.epochs) == (2, 3)
    job.resume(run)
    weights = (run / "model.safetensors").read_bytes()
    assert weights == (whole.run / "model.safetensors").read_bytes()


def test_a_second_signal_does_not_wait_for_the_step(tmp_path):
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal was held back")

    run = interrupt(quick(tmp_path), Calls(twice, 12))
    assert read(run, "status.json")["epoch"] == 1


def test_a_finished_run_is_not_resumed(tmp_path):
    run = job.start(quick(tmp_path, epochs=1)).run
    before = {file: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(ConfigError, match="can't be resumed, it is finished: 18 frozen tensors"):
        job.resume(run)
    assert {file: file.read_bytes() for file in run.iterdir()} == before


def test_a_folder_that_is_no_run_stays_as_it_is(tmp_path):
    with pytest.raises(ConfigError, match="is not a run that can be resumed"):
        job.resume(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_no_longer_fits_the_optimizer_is_refused(tmp_path):
    run = interrupt(quick(tmp_path), Calls(lambda: signal.raise_signal(signal.SIGINT), 12))
    (run / "plan.yaml").write_text("frostline: 1\nrules: [{freeze: stem}]")
    with pytest.raises(ConfigError, match="can't be resumed, its plan changed"):
        job.resume(run)


def test_a_factory_is_resumed_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.2),"
        " nn.Linear(8, 5))\n"
    )
    config = quick(Path("runs"), model="nets.py:build", freeze=["1"])
    monkeypatch.chdir(tmp_path)
    whole = job.start(config)
    assert whole.run.parts[0] == "runs"
    assert whole.run.name.startswith("nets.py-build-")
    run = interrupt(config, Calls(lambda: signal.raise_signal(signal.SIGINT), 15)).resolve()
    monkeypatch.chdir("/")
    job.resume(run)
    weights = (run / "model.safetensors").read_bytes()
    assert weights == (tmp_path / whole.run / "model.safetensors").read_bytes()


CHANCE = """
import random
import numpy
import torch

class Chance(torch.utils.data.Dataset):
    "Noise from each of the three generators."
    classes = ("a", "b")

    def __len__(self):
        return 8

    def __getitem__(self, place):
        drawn = [random.random(), float(numpy.random.rand()), float(torch.rand(()))]
        return torch.tensor(drawn), place % 2

def build():
    return Chance(), Chance()

def net():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_made_by_chance_are_those_of_the_seed_and_the_epoch(tmp_path, workers):
    (tmp_path / "own.py").write_text(CHANCE)
    fields = {"model": f"{tmp_path / 'own.py'}:net", "data": f"{tmp_path / 'own.py'}:build"}
    fields |= {"freeze": ["0"], "workers": workers, "epochs": 2, "batch_size": 4}
    before = random.getstate()
    whole, other = (
        job.start(quick(tmp_path / f"whole-{seed}", **fields, seed=seed)).run for seed in (0, 1)
    )
    assert random.getstate() == before
    # In the second epoch of two steps.
    watcher = Calls(lambda: signal.raise_signal(signal.SIGINT), 3)
    run = interrupt(quick(tmp_path / "cut", **fields), watcher)
    gc.collect()  # a worker of the loader that was left shares the run's lock while it lives
    job.resume(run)
    assert history(run) == history(whole) != history(other)
