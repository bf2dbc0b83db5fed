"""Replay in the fine-tuning job: the same results, decided beforehand, told afterwards."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from jobs import history, quick, read
from torch.utils.data import default_collate

from frostline.errors import ConfigError
from frostline.finetune import job, replaying
from frostline.finetune.data import Split, load_digits_task
from frostline.finetune.feeding import ReplayFeed, Timing, plain_feed
from frostline.finetune.loading import Batches, make_loader
from frostline.finetune.loop import stream_of
from frostline.finetune.networks import DigitsCNN
from frostline.finetune.replaying import saved_seconds, why_not_worth_it
from frostline.finetune.watcher import Silent
from frostline.freezing import freeze
from frostline.replay.folder_store import FolderStore

pytestmark = pytest.mark.usefixtures("swift")

NOISY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(64, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)) + torch.rand(1))

class Hooked(Net):
    def __init__(self):
        super().__init__()
        self.register_forward_pre_hook(lambda *call: None)
        self.body.register_forward_hook(lambda *call: None)

class Picky(Net):
    "Takes no more than one forward pass in train mode before its first step."
    calls = 0

    def forward(self, x):
        if self.training:
            Picky.calls += 1
            if Picky.calls == 1:
                raise ValueError("not now")
        return super().forward(x)
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of other tests would be replayed here; the pretrained network may be."""
    monkeypatch.setattr(replaying, "replay_folder", lambda: tmp_path / "records")


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def outcome(result):
    """All that a run decides, without its times."""
    weights = (result.run / "model.safetensors").read_bytes()
    return weights, history(result.run), result.accuracy, result.proof.ok


@pytest.mark.parametrize(
    "train",
    [
        pytest.param(["head"], id="head"),
        pytest.param(["block3", "head"], id="dropout-and-norm-in-the-live-part"),
    ],
)
def test_the_same_bits_with_and_without(tmp_path, train):
    plain = job.start(quick(tmp_path, train=train, epochs=5, replay="off"))
    assert plain.replay.replayed == 0
    for how in ("on", "on", "memory", str(tmp_path / "mine")):
        replayed = job.start(quick(tmp_path, train=train, epochs=5, replay=how))
        assert outcome(replayed) == outcome(plain)
        assert replayed.replay.why_not is None
        assert replayed.replay.replayed >= 30
        assert replayed.replay.kept_bytes > 671 * 2048
        assert 0 < replayed.replay.skipped_share <= 1


def test_a_later_run_replays_from_its_first_epoch(tmp_path):
    first = job.start(quick(tmp_path, train=["head"], epochs=1, replay="on"))
    other = {"train": ["head"], "epochs": 1, "lr": 0.1, "optimizer": "SGD"}
    second = job.start(quick(tmp_path, **other, replay="on"))
    # Two batches are recorded before the first is known to be right.
    assert first.replay.replayed <= 1
    assert second.replay.replayed >= 8
    assert second.replay.recorded < first.replay.recorded
    assert outcome(second) == outcome(job.start(quick(tmp_path, **other, replay="off")))


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        pytest.param("Hooked", "a hook hangs on it", id="a-hook"),
        pytest.param("Picky", "the model could not be tried out: ValueError: not now", id="raises"),
    ],
)
def test_what_cannot_be_replayed_is_trained_and_said(tmp_path, net, reason):
    (tmp_path / "nets.py").write_text(NOISY)
    config = quick(tmp_path, model=f"{tmp_path}/nets.py:{net}", train=["head"], replay="on")
    result = job.start(config)
    assert reason in result.replay.why_not
    assert (result.replay.place, result.replay.replayed, result.replay.kept_bytes) == (None, 0, 0)
    assert read(result.run, "result.json")["replay"]["why_not"] == result.replay.why_not


def test_noise_between_modules_stays_the_same_noise(tmp_path):
    (tmp_path / "nets.py").write_text(NOISY)
    runs = [
        job.start(quick(tmp_path, model=f"{tmp_path}/nets.py:Net", train=["head"], replay=how))
        for how in ("off", "memory")
    ]
    assert outcome(runs[0]) == outcome(runs[1])
    assert runs[1].replay.replayed > 0


def test_it_says_beforehand_how_much_will_be_kept_and_where(tmp_path):
    notes = Notes()
    job.start(quick(tmp_path, train=["head"], epochs=1, replay="memory"), notes)
    assert "replay: about 1.8 MiB will be kept in memory (2.0 KiB for each of 896 samples)" in (
        notes.notes
    )


@pytest.mark.parametrize(
    ("forward", "replayed", "room", "reason"),
    [
        pytest.param(1.0, 10.0, 10**9, "reading a batch takes", id="slow-to-read"),
        pytest.param(10.0, 1.0, 10**9, None, id="fast-to-read"),
        pytest.param(10.0, 1.0, 1000, "there is room for 1000 B", id="no-room"),
    ],
)
def test_auto_looks_at_time_and_room(tmp_path, monkeypatch, forward, replayed, room, reason):
    real = replaying.frost_line

    def measured(*args, **kwargs):
        line = real(*args, **kwargs)
        times = {"forward_seconds": forward, "replayed_seconds": replayed}
        return type(line)(**{**vars(line), **times})

    monkeypatch.setattr(replaying, "frost_line", measured)
    monkeypatch.setattr(replaying, "_room", lambda place: room)
    report = job.start(quick(tmp_path, train=["head"])).replay
    if reason is None:
        assert report.replayed > 0
    else:
        assert reason in report.why_not
    # Who asks for it gets it.
    assert job.start(quick(tmp_path, train=["head"], replay="on")).replay.replayed > 0


def test_the_reasons_of_auto():
    fits = {"forward_seconds": 2.0, "replayed_seconds": 1.0, "needed_bytes": 1, "room_bytes": 1}
    assert why_not_worth_it(**fits) is None
    assert why_not_worth_it(**{**fits, "replayed_seconds": 2.0}) == (
        "reading a batch takes 2 s here, computing it 2 s"
    )
    assert why_not_worth_it(**{**fits, "needed_bytes": 2048}) == (
        "2.0 KiB would be kept, and there is room for 1 B"
    )


def test_what_it_saved_counts_what_it_cost():
    def timing(seconds, *, is_replayed=True, samples=10, part=0):
        return Timing(part=part, samples=samples, seconds=seconds, is_replayed=is_replayed)

    recording = timing(9.0, is_replayed=False)
    # A replayed batch takes 1, so a plain one would take 1 + 10 x 0.3 = 4.
    assert saved_seconds([recording, timing(1.0), timing(1.0)], 0.3) == pytest.approx(-5 + 3 + 3)
    assert saved_seconds([recording], 0.3) == 0.0
    held_out = timing(2.0, samples=20, part=1)
    assert saved_seconds([timing(1.0), held_out], 0.3) == pytest.approx(3 + 6)


def test_a_folder_that_cannot_be_one_is_refused_before_a_run_is_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--replay: .*file"):
        job.start(quick(tmp_path / "runs", replay=str(tmp_path / "file")))
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_the_reason_and_not_the_model(tmp_path, monkeypatch):
    full = functools.partial(FolderStore, budget=1)
    monkeypatch.setattr(replaying, "FolderStore", full)
    result = job.start(quick(tmp_path, train=["head"], epochs=1, replay="on"))
    assert result.replay.why_not == "the budget of 1 B is used up"


def test_without_a_folder_to_write_to_it_is_kept_in_memory(tmp_path, monkeypatch):
    def nowhere():
        raise RuntimeError("no home folder")

    monkeypatch.setattr(replaying, "replay_folder", nowhere)
    assert job.start(quick(tmp_path, train=["head"], replay="on")).replay.place == "memory"


# --- what the loop is given -------------------------------------------------------------------


def loader_of(split: Split, seed: int | None = None):
    return make_loader(split, default_collate, Batches(len(split), 32, seed=seed))


def test_fed_batches_are_those_of_the_loop_and_no_random_number_is_drawn():
    split = load_digits_task((5, 6), seed=3).train
    model = DigitsCNN(2)
    freeze(model, all_but="head")
    model.train()
    feed, loader = ReplayFeed(model, "memory"), loader_of(split, seed=1)
    for epoch in range(4):
        loader.batch_sampler.epoch = epoch
        before = torch.get_rng_state()
        pairs = zip(plain_feed(loader), feed(loader), strict=True)
        for (inputs, targets), (fed, labels) in pairs:
            assert torch.equal(before, torch.get_rng_state())
            model(fed)
            before = torch.get_rng_state()
            assert torch.equal(targets, labels)
            assert torch.equal(inputs, fed) or (epoch and bool(fed.isnan().all()))
    assert feed.replayers[0].stats.replayed > 0
    assert any(timing.is_replayed for timing in feed.timings)


def test_inputs_are_left_out_where_nothing_live_needs_them():
    split = Split(inputs=torch.randn(64, 8), targets=torch.arange(64))
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 64))
    freeze(model, "0")
    feed, loader = ReplayFeed(model, "memory"), loader_of(split, seed=0)
    poisoned = 0
    for epoch in range(4):
        loader.batch_sampler.epoch = epoch
        for inputs, targets in feed(loader):
            model(inputs)
            poisoned += bool(inputs.isnan().all())
            assert sorted(targets.tolist()) == sorted(set(targets.tolist()))
    assert poisoned > 0


def test_a_loop_that_stops_in_an_epoch_leaves_the_model_whole():
    split = Split(inputs=torch.randn(64, 8), targets=torch.arange(64))
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 64))
    freeze(model, "0")
    with stream_of(ReplayFeed(model, "memory")(loader_of(split))) as fed:
        inputs, _ = next(fed)
        model(inputs)
    assert "forward" not in vars(model)
    assert "forward" not in vars(model[0])
