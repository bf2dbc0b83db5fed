"""Schedules in the fine-tuning job: every method, with replay, resumed, and beside a plan."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
import yaml
from jobs import FINISHED, Calls, files, history, interrupt, quick, read
from scheduling import BUSY

from frostline.errors import ConfigError, FrozenChangedError, ScheduleError
from frostline.finetune import job, replaying
from frostline.finetune.config import FinetuneConfig, load_config
from frostline.finetune.loop import batch_loss
from frostline.finetune.prepare import (
    first_batch,
    open_job,
    plan_of,
    prepare,
    with_absolute_paths,
)
from frostline.finetune.scheduling import schedule_of, start_freezer
from frostline.schedules import LISA, Explicit, registry, to_plain

pytestmark = pytest.mark.usefixtures("swift")

SCHEDULED = FINISHED | {"schedule.yaml", "timeline.json"}

# For the embedded network: 11 steps an epoch, and three blocks.
PHASES = [
    {"epoch": 0, "train": ["head", "block3"], "rates": {"block3": 0.5}},
    {"epoch": 1, "train": ["**"]},
    {"step": 25, "train": ["head"]},
]
OPTIONS = {
    **BUSY,
    "explicit": {"phases": PHASES},
    "autofreeze": {"looks_per_epoch": 5},
    "apf": {"period": 5, "threshold": 0.8, "decay": 0.5},
    "surgical": {"blocks": [0, -1]},
}

NUDGES = """
import torch
from frostline.finetune.networks import DigitsCNN

class Nudges(DigitsCNN):
    "Moves its own frozen stem in each training step."

    def forward(self, x):
        if self.training:
            value = self.stem[0].weight.detach().view(-1)
            value[7] = torch.nextafter(value[7], torch.tensor(9.0))
        return super().forward(x)
"""


def scheduled(out: Path, name: str, **fields: object) -> FinetuneConfig:
    options = {"schedule": name, **OPTIONS[name]}
    return quick(out, **{"schedule": options, "replay": "off", **fields})


def outcome(result):
    """All that a run decides, without its times."""
    weights = (result.run / "model.safetensors").read_bytes()
    return weights, history(result.run), result.accuracy, result.proof.ok, result.schedule


def stop(at):
    return Calls(lambda: signal.raise_signal(signal.SIGINT), at)


@pytest.mark.parametrize("name", registry)
def test_every_method_goes_on_bit_for_bit(tmp_path, name):
    at = 12 + 5 * list(registry).index(name) % 21  # in the second epoch or the third
    straight = job.start(scheduled(tmp_path / "a", name))
    run = interrupt(scheduled(tmp_path / "b", name), stop(at))
    resumed = job.resume(run)
    assert outcome(resumed) == outcome(straight)
    assert read(resumed.run, "timeline.json") == read(straight.run, "timeline.json")
    assert files(run) - {"timeline.png"} == SCHEDULED


@pytest.mark.parametrize("name", ["gradual-unfreeze", "autofreeze", "plasticity", "alpha", "lisa"])
def test_the_same_bits_with_and_without_replay(tmp_path, name):
    plain, replayed = (
        job.start(scheduled(tmp_path, name, epochs=5, replay=how)) for how in ("off", "memory")
    )
    assert outcome(replayed) == outcome(plain)
    assert plain.replay.replayed == 0
    if name == "gradual-unfreeze":  # a new block in each epoch: all is recorded, nothing comes back
        assert replayed.replay.recorded > 0
        assert replayed.replay.why_not == "what was frozen changed before a sample came twice"
    elif name == "lisa":  # the stem trains
        assert "nothing to replay" in replayed.replay.why_not
    else:
        assert replayed.replay.replayed > 0
        assert 0 < replayed.replay.skipped_share <= 1


def test_auto_looks_again_where_other_parts_are_frozen(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(replaying, "why_not_worth_it", lambda **figures: looked.append(figures))
    schedule = [{"epoch": 0, "train": "**"}, {"epoch": 1, "train": ["block3", "head"]}]
    result = job.start(quick(tmp_path, epochs=5, schedule=schedule, replay="auto"))
    assert len(looked) == 1  # at first nothing is frozen, and nothing can be replayed
    assert result.replay.replayed > 0
    assert result.replay.why_not is None


def test_a_change_in_what_is_frozen_is_proved_before_a_checkpoint_takes_it(tmp_path):
    (tmp_path / "nets.py").write_text(NUDGES)
    schedule = [{"epoch": 0, "train": "head"}, {"epoch": 2, "train": "**"}]
    model = f"{tmp_path}/nets.py:Nudges"
    with pytest.raises(FrozenChangedError, match=r"stem\.0\.weight"):
        job.start(quick(tmp_path / "runs", model=model, schedule=schedule, replay="off"))
    (run,) = (tmp_path / "runs").iterdir()
    status = read(run, "status.json")
    assert (status["state"], status["resumable"], status["epoch"]) == ("failed", False, 0)


# --- beside a plan ----------------------------------------------------------------------------


def test_what_the_plan_freezes_stays_frozen(tmp_path):
    config = scheduled(tmp_path, "gradual-unfreeze", epochs=6, freeze=["stem", "block2"])
    result = job.start(config)
    assert result.proof.ok
    assert result.schedule.places == ("block1", "block3", "head")
    assert result.proof.parameters == 6
    assert result.trained.rules == "schedule: gradual-unfreeze; freeze: stem; freeze: block2"
    assert result.trained.parameters == 130_533 - 352 - 36_992
    assert read(result.run, "frozen.json")["parameter"].keys() == {
        f"{block}.{name}"
        for block in ("stem", "block2")
        for name in ("0.weight", "1.weight", "1.bias")
    }


def test_a_plan_that_leaves_the_schedule_too_little_is_named_before_a_run_is_made(tmp_path):
    config = scheduled(tmp_path / "runs", "autofreeze", train=["head"])
    with pytest.raises(ScheduleError, match=r"What the plan freezes \(freeze: \*\*; train: head\)"):
        job.start(config)
    assert not (tmp_path / "runs").exists()


# --- what is asked for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"schedule": "explicit", "phases": PHASES},
        {"phases": PHASES},
        PHASES,
    ],
)
def test_phases_in_the_configuration(asked):
    assert schedule_of(FinetuneConfig(schedule=asked)) == Explicit(PHASES)


def test_a_file_a_name_or_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("schedule: lisa\nperiod: 2\n")
    Path("mine").write_text("schedule: lisa\nperiod: 2\n")
    Path("lisa").write_text("a folder's own business")
    for asked in ("mine.yaml", "mine", "./mine.yaml", {"schedule": "lisa", "period": 2}):
        assert schedule_of(FinetuneConfig(schedule=asked)) == LISA(period=2)
    assert schedule_of(FinetuneConfig(schedule="lisa")) == LISA()
    assert schedule_of(FinetuneConfig()) is None


@pytest.mark.parametrize("value", ["3", "no", "{}", "[]", "''"])
def test_what_is_no_schedule_is_refused(tmp_path, value):
    file = tmp_path / "job.yaml"
    file.write_text(f"schedule: {value}\n")
    with pytest.raises(
        ConfigError, match=r"job\.yaml, line 1: schedule: got .* expected a schedule's name"
    ):
        load_config(file)


@pytest.mark.parametrize("asked", ["lisa", PHASES, {"schedule": "lisa", "period": 2}, None])
def test_the_configuration_comes_back_from_yaml(tmp_path, asked):
    file = tmp_path / "job.yaml"
    file.write_text(FinetuneConfig(schedule=asked).to_yaml())
    assert load_config(file).schedule == asked
    assert load_config(file, {"schedule": "badam"}).schedule == "badam"


def test_only_a_file_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "lisa"):
        Path(name).touch()
    given = ("mine.yaml", "lisa", PHASES)
    found = [with_absolute_paths(FinetuneConfig(schedule=asked)).schedule for asked in given]
    assert found == [str(tmp_path / "mine.yaml"), "lisa", PHASES]


def test_a_run_goes_on_with_the_schedule_it_began_with(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("schedule: lisa\nperiod: 2\n")
    run = interrupt(quick(tmp_path / "runs", schedule=str(file)), stop(15))
    file.write_text("schedule: badam\n")
    job.resume(run)
    assert read(run, "timeline.json")["schedule"] == to_plain(LISA(period=2))
    assert yaml.safe_load((run / "schedule.yaml").read_text()) == to_plain(LISA(period=2))


def test_another_schedule_in_the_run_folder_is_refused(tmp_path):
    run = interrupt(scheduled(tmp_path, "lisa"), stop(15))
    (run / "schedule.yaml").write_text("schedule: badam\n")
    with pytest.raises(ConfigError, match=r"can't be resumed: the state was saved by .*'lisa'"):
        job.resume(run)


def test_the_checkpoint_is_plain_and_the_timeline_adds_up(tmp_path):
    run = interrupt(scheduled(tmp_path, "autofreeze"), stop(25))
    saved = torch.load(run / "checkpoint.pt", weights_only=True)["states"]["training"]
    assert saved["position"]["step"] == 22
    job.resume(run)
    timeline = read(run, "timeline.json")
    assert sum(stretch["steps"] for stretch in timeline["stretches"]) == 33
    assert timeline["events"][0]["kind"] == "start"


def test_a_step_that_the_gradient_scaler_leaves_out_is_no_error(tmp_path):
    """As under fp16, which needs a GPU: the optimizer makes one step less than the loop."""
    config = quick(tmp_path, schedule=PHASES)
    sources, engine = open_job(config, lambda text: None)
    setup = prepare(config, plan_of(config), sources, engine)
    half = config.model_copy(update={"mixed_precision": "fp16"})
    freezer = start_freezer(schedule_of(config), half, setup)
    batch = first_batch(setup, 4)
    for number in range(3):
        setup.optimizer.zero_grad()
        loss = batch_loss(setup.model, batch)
        loss.backward()
        if number:
            setup.optimizer.step()
        freezer.step(loss.item())
    freezer.epoch(0.5)
    assert (freezer.position.step, freezer.position.epoch) == (2, 1)
    assert freezer.frozen == ()
