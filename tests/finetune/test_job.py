from __future__ import annotations

import errno
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from frostline.errors import ConfigError, OutputError
from frostline.finetune import job, savings
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.interrupts import Interrupted
from frostline.finetune.pretrain import pretrained_digits_cnn
from frostline.finetune.watcher import Silent
from frostline.freezing import Plan

FINISHED = {
    "config.yaml",
    "frozen.json",
    "metrics.jsonl",
    "model.safetensors",
    "plan.yaml",
    "result.json",
    "status.json",
}
UNFINISHED = FINISHED - {"model.safetensors", "result.json"} | {"checkpoint.pt"}


@pytest.fixture(autouse=True)
def _swift(monkeypatch):
    """One thread, which small networks like best, and few repeats where time is measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(savings, "_PATIENCE_SECONDS", 0.0)
    yield
    torch.set_num_threads(threads)


def quick(out: Path, **fields: object) -> FinetuneConfig:
    return FinetuneConfig(**{"epochs": 3, "batch_size": 64, "lr": 3e-3, "out": out, **fields})


def files(run: Path) -> set[str]:
    return {file.name for file in run.iterdir()}


def read(run: Path, name: str) -> dict:
    return json.loads((run / name).read_text())


def history(run: Path) -> list[tuple[int, float, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["epoch"], line["loss"], line["accuracy"]) for line in lines]


class Calls(Silent):
    """Calls a function in step ``at``, counted over all epochs from 1."""

    def __init__(self, act, at: int) -> None:
        self.act = act
        self.left = at

    def step(self, loss: float) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def interrupt(config: FinetuneConfig, watcher: Silent) -> Path:
    with pytest.raises(Interrupted) as caught:
        job.start(config, watcher)
    return Path(caught.value.run)


def test_the_default_job_learns_and_keeps_the_backbone(tmp_path):
    result = job.start(FinetuneConfig(out=tmp_path))
    assert result.accuracy.before < 0.5
    assert result.accuracy.after > 0.9
    assert result.accuracy.held_out == 225
    assert (result.proof.ok, result.proof.parameters, result.proof.buffers) == (True, 9, 9)
    assert files(result.run) == FINISHED
    base = pretrained_digits_cnn(lambda text: None).state_dict()
    tuned = load_file(result.run / "model.safetensors")
    same = {name for name in base if torch.equal(base[name], tuned[name])}
    assert {name.partition(".")[0] for name in same} == {"stem", "block1", "block2"}
    assert len(same) == 18
    assert len(base) == 26


def test_the_run_folder_says_what_was_done(tmp_path):
    config = quick(tmp_path, train=["head"])
    result = job.start(config)
    assert str(Plan.load(result.run / "plan.yaml")) == "freeze: **; train: head"
    assert [epoch for epoch, _, _ in history(result.run)] == [1, 2, 3]
    assert read(result.run, "result.json") == result.to_json()
    assert read(result.run, "status.json") == {
        "state": "finished",
        "epoch": 3,
        "epochs": 3,
        "resumable": False,
        "message": "24 frozen tensors are bitwise unchanged",
        "next": f"frostline inspect {result.run}/model.safetensors",
    }
    assert read(result.run, "frozen.json").keys() == {"parameter", "buffer"}
    assert result.trained.parameters == 128 * 5 + 5


def test_freezing_saves_memory_and_full_training_is_the_model_as_it_came(tmp_path):
    saved = job.start(quick(tmp_path, epochs=1)).saved
    trained, everything = 74_629, 130_533
    assert saved.frozen.gradient_bytes == 4 * trained
    assert saved.full.gradient_bytes == 4 * everything
    # Two moments an element, and a counter of 4 bytes a tensor.
    assert saved.frozen.optimizer_state_bytes == 8 * trained + 4 * 5
    assert saved.full.optimizer_state_bytes == 8 * everything + 4 * 14
    assert saved.frozen.activation_bytes < saved.full.activation_bytes / 4
    assert saved.frozen.step_seconds > 0


def test_the_same_job_twice_gives_the_same_weights_in_two_folders(tmp_path):
    first, second = job.start(quick(tmp_path)), job.start(quick(tmp_path))
    assert first.run != second.run
    weights = [(result.run / "model.safetensors").read_bytes() for result in (first, second)]
    assert weights[0] == weights[1]
    assert history(first.run) == history(second.run)
    other = job.start(quick(tmp_path, seed=1))
    assert (other.run / "model.safetensors").read_bytes() != weights[0]


def test_the_callers_random_state_and_threads_are_left_alone(tmp_path):
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    job.start(quick(tmp_path, epochs=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == 2


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
def test_interrupted_and_resumed_is_the_same_bit_for_bit(tmp_path, watcher, epochs_done):
    whole = job.start(quick(tmp_path / "whole"))
    run = interrupt(quick(tmp_path / "cut"), watcher)
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


def one_ulp(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        flat = tensor.view(-1)
        if flat.is_floating_point():
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf))
        else:
            flat[-1] += 1


@pytest.fixture
def models(monkeypatch) -> list[nn.Module]:
    """The models of all runs of this test, as they are made."""
    made: list[nn.Module] = []
    prepare = job.prepare

    def noting(*args, **kwargs):
        setup = prepare(*args, **kwargs)
        made.append(setup.model)
        return setup

    monkeypatch.setattr(job, "prepare", noting)
    return made


FROZEN_TENSORS = [
    pytest.param("stem.0.weight", "parameter", id="weight"),
    pytest.param("block2.1.bias", "parameter", id="bias"),
    pytest.param("block1.1.running_mean", "buffer", id="running-mean"),
    pytest.param("block2.1.running_var", "buffer", id="running-var"),
    pytest.param("stem.1.num_batches_tracked", "buffer", id="counter"),
]


@pytest.mark.parametrize(("name", "kind"), FROZEN_TENSORS)
def test_one_unit_in_the_last_place_breaks_the_proof(tmp_path, models, name, kind):
    result = job.start(
        quick(tmp_path), Calls(lambda: one_ulp(models[0].state_dict(keep_vars=True)[name]), 13)
    )
    assert not result.proof.ok
    (change,) = result.proof.changes
    assert (change.name, change.kind, change.moved) == (name, kind, 1)
    assert files(result.run) == FINISHED
    written = read(result.run, "result.json")["proof"]
    assert written["ok"] is False
    assert [moved["name"] for moved in written["changes"]] == [name]
    status = read(result.run, "status.json")
    assert (status["state"], status["resumable"]) == ("failed", False)
    assert status["message"].startswith(f"the proof failed: {kind} {name}: 1 of ")
    assert status["next"] == f"frostline finetune {result.run}/config.yaml"
    with pytest.raises(ConfigError, match="can't be resumed, it is failed: the proof failed"):
        job.resume(result.run)


@pytest.mark.parametrize(("name", "kind"), FROZEN_TENSORS)
def test_the_proof_covers_what_happened_before_a_resumption(tmp_path, models, name, kind):
    class MovesThenStops(Silent):
        """Moves a tensor in epoch 1, whose checkpoint then has it, and stops in epoch 2."""

        def __init__(self) -> None:
            self.steps = 0

        def step(self, loss: float) -> None:
            self.steps += 1
            if self.steps == 3:
                one_ulp(models[0].state_dict(keep_vars=True)[name])
            if self.steps == 12:
                signal.raise_signal(signal.SIGINT)

    run = interrupt(quick(tmp_path), MovesThenStops())
    result = job.resume(run)
    (change,) = result.proof.changes
    assert (change.name, change.kind, change.moved) == (name, kind, None)
    assert change.elements == models[0].state_dict()[name].numel()
    assert "before the run was resumed" in change.cause
    (written,) = read(run, "result.json")["proof"]["changes"]
    assert written["max_abs"] is None


def test_a_plan_that_was_altered_in_between_breaks_the_proof(tmp_path):
    run = interrupt(
        quick(tmp_path, train=["block3", "head"], optimizer="SGD"),
        Calls(lambda: signal.raise_signal(signal.SIGINT), 12),
    )
    # As many tensors are trained as before, but others.
    plan = "frostline: 1\nrules: [{freeze: '**'}, {train: [block2, head]}]"
    (run / "plan.yaml").write_text(plan)
    result = job.resume(run)
    assert {change.name.partition(".")[0] for change in result.proof.changes} == {"block2"}
    assert len(result.proof.changes) == 6


def test_a_plan_that_no_longer_fits_the_optimizer_is_refused(tmp_path):
    run = interrupt(quick(tmp_path), Calls(lambda: signal.raise_signal(signal.SIGINT), 12))
    (run / "plan.yaml").write_text("frostline: 1\nrules: [{freeze: stem}]")
    with pytest.raises(ConfigError, match="can't be resumed, its plan changed"):
        job.resume(run)


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


def test_if_the_status_cannot_be_written_either_the_first_error_is_shown(tmp_path, full_disk):
    full_disk("status.json", after=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        job.start(quick(tmp_path), Calls(lambda: raise_(RuntimeError("out of memory")), 1))


def raise_(error: Exception) -> None:
    raise error


def test_any_error_is_noted_and_the_run_can_go_on(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        job.start(quick(tmp_path), Calls(lambda: raise_(RuntimeError("out of memory")), 12))
    (run,) = tmp_path.iterdir()
    status = read(run, "status.json")
    assert (status["state"], status["message"]) == ("failed", "out of memory")
    assert job.resume(run).proof.ok


def test_a_loss_that_is_not_finite_would_come_again(tmp_path):
    with pytest.raises(ConfigError, match="the loss became"):
        job.start(quick(tmp_path, lr=1e30))
    (run,) = tmp_path.iterdir()
    status = read(run, "status.json")
    assert (status["state"], status["resumable"]) == ("failed", False)
    assert status["next"] == f"frostline finetune {run}/config.yaml"


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


def test_tied_weights_are_written_once_and_buffers_left_out_of_the_state_are_proven(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.one = nn.Linear(64, 64)\n"
        "        self.two = nn.Linear(64, 64)\n"
        "        self.two.weight = self.one.weight\n"
        "        self.two.register_buffer('calls', torch.zeros(()), persistent=False)\n"
        "        self.head = nn.Linear(64, 5)\n"
        "    def forward(self, x):\n"
        "        self.two.calls += 1\n"
        "        return self.head(self.two(self.one(x.flatten(1)).relu()))\n"
    )
    result = job.start(quick(tmp_path, model=f"{tmp_path}/nets.py:Net", train=["head"]))
    assert [change.name for change in result.proof.changes] == ["two.calls"]
    stored = load_file(result.run / "model.safetensors")
    assert stored.keys() == {"one.weight", "one.bias", "two.bias", "head.weight", "head.bias"}


def test_savings_that_cannot_be_measured_spoil_nothing(tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        raise RuntimeError("cannot copy")

    class Notes(Silent):
        said: list[str] = []

        def note(self, text: str) -> None:
            self.said.append(text)

    monkeypatch.setattr(job, "measure_savings", failing)
    result = job.start(quick(tmp_path, epochs=1), Notes())
    assert Notes.said == ["what freezing saved could not be measured: cannot copy"]
    assert read(result.run, "result.json")["saved"] is None
    assert read(result.run, "status.json")["state"] == "finished"
