"""``FrostlineCallback`` in the Trainer: what the contract of all frameworks does not cover."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from framework_huggingface import RecordingTrainer, StopAfter, arguments, quiet_trainer
from framework_jobs import HEAD, STEPS, Network, Samples, copied
from transformers import TrainerCallback

import frostline as fl
from frostline.integrations.huggingface import FrostlineCallback
from frostline.integrations.huggingface.replayed import ReplayedForward

THAW_AT_4 = [{"step": 0, "train": ["head"]}, {"step": 4, "train": ["head", "blocks.2"]}]


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def trainer_of(
    out: Path, *callbacks: TrainerCallback, model: Any = None, given: Any = None, **options: Any
) -> RecordingTrainer:
    return quiet_trainer(
        model if model is not None else network(),
        arguments(out, per_device_train_batch_size=8, **options),
        train_dataset=Samples(),
        eval_dataset=Samples(16),
        callbacks=list(callbacks),
        **(given or {}),
    )


def moved(before: dict[str, torch.Tensor], trainer: RecordingTrainer) -> set[str]:
    after = trainer.model.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


class Writes(TrainerCallback):
    """Moves a frozen weight behind everybody's back, at one step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            kwargs["model"].stem.weight.data.add_(1.0)


def test_what_thaws_later_trains_in_its_weight_decay_group(tmp_path: Path) -> None:
    """PITFALLS: the Trainer's optimizer held 2 of 41 parameters; what thaws never trained."""
    callback = FrostlineCallback(schedule=THAW_AT_4)
    trainer = trainer_of(tmp_path, callback, num_train_epochs=2, weight_decay=0.1)
    before = copied(trainer.model)
    trainer.train()
    assert moved(before, trainer) == {n for n in before if n.startswith(("head", "blocks.2"))}
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    decayed, spared = (
        {names[id(p)] for p in group["params"]} for group in trainer.optimizer.param_groups
    )
    assert decayed | spared == set(names.values())
    assert {"blocks.2.up.weight", "stem.weight"} <= decayed
    assert {"blocks.2.up.bias", "stem.bias", "head.bias"} <= spared
    trained = {names[id(p)] for p in trainer.optimizer.optimizer.state}
    assert trained == {n for n in names.values() if n.startswith(("head", "blocks.2"))}
    assert callback.freezer is not None
    assert [row.step for row in callback.freezer.timeline()] == [0, 4]


@pytest.mark.parametrize(
    ("how", "stop"),
    [
        ({"plan": HEAD}, 4),
        ({"schedule": THAW_AT_4}, 3),
        ({"schedule": THAW_AT_4}, 4),
        ({"schedule": THAW_AT_4}, 5),
        ({"plan": fl.Plan.freezing("stem"), "schedule": "lisa", "replay": True}, 8),
    ],
    ids=["plan", "before-the-thaw", "at-the-thaw", "behind-the-thaw", "plan-and-lisa"],
)
def test_resume_in_the_middle_of_an_epoch(how: dict[str, Any], stop: int, tmp_path: Path) -> None:
    """PITFALLS: flags are in no checkpoint, and resume fails on group sizes."""

    def run(*callbacks: TrainerCallback, checkpoint: str | None = None) -> RecordingTrainer:
        trainer = trainer_of(tmp_path, FrostlineCallback(**how), *callbacks, num_train_epochs=2)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = run()
    stopped = run(StopAfter(stop))
    resumed = run(checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert stopped.losses + resumed.losses == whole.losses
    assert moved(copied(whole.model), resumed) == set()
    flags = [[p.requires_grad for p in t.model.parameters()] for t in (whole, resumed)]
    assert flags[0] == flags[1]


def test_evaluation_in_the_middle_and_the_best_model_at_the_end(tmp_path: Path) -> None:
    """The best checkpoint is of a time when blocks.2 was frozen yet: that is no fault."""
    schedule = fl.schedules.Explicit(
        [{"epoch": 0, "train": ["head", "blocks.2"]}, {"epoch": 2, "train": ["head"]}]
    )
    callback = FrostlineCallback(schedule=schedule)
    trainer = trainer_of(
        tmp_path,
        callback,
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,  # the first: the labels are random
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert Path(best).name == f"checkpoint-{STEPS}"
    assert callback.freezer is not None
    assert callback.freezer.frozen[-1].startswith("blocks.2")


def test_a_phase_waits_for_the_metric(tmp_path: Path) -> None:
    schedule = fl.schedules.Explicit(
        [{"epoch": 0, "train": ["head"]}, {"stall": 1, "train": ["head", "blocks.2"]}], better="min"
    )
    callback = FrostlineCallback(schedule=schedule)
    # The labels are random: the evaluation's loss is best in the first epoch.
    trainer = trainer_of(tmp_path, callback, num_train_epochs=3, eval_strategy="epoch")
    trainer.train()
    assert callback.freezer is not None
    assert [row.step for row in callback.freezer.timeline()] == [0, 2 * STEPS]


def test_one_trainer_trains_twice(tmp_path: Path) -> None:
    callback = FrostlineCallback(HEAD, schedule=None, replay=True)
    trainer = trainer_of(tmp_path, callback, num_train_epochs=2)
    before = copied(trainer.model)
    trainer.train()
    assert callback.replayer is not None
    recorded = callback.replayer.stats.recorded
    trainer.train()
    assert callback.replayer.stats.recorded == recorded  # the first training's records serve
    assert moved(before, trainer) == {n for n in before if n.startswith(("head", "blocks.2"))}
    assert "forward" not in vars(trainer.model)
    proofs = [entry for entry in trainer.state.log_history if "frozen_tensors" in entry]
    assert [entry["frozen_tensors"] for entry in proofs] == [20]


def test_a_schedule_begins_anew_in_a_second_training(tmp_path: Path) -> None:
    callback = FrostlineCallback(schedule=THAW_AT_4)
    trainer = trainer_of(tmp_path, callback, num_train_epochs=1)
    trainer.train()
    trainer.train()
    assert callback.freezer is not None
    assert [row.step for row in callback.freezer.timeline()] == [0, 4]


@pytest.mark.parametrize("late", [False, True], ids=["model_init", "add_callback"])
def test_a_model_that_is_made_late_is_frozen(late: bool, tmp_path: Path) -> None:
    callback = FrostlineCallback(HEAD)
    if late:
        trainer = trainer_of(tmp_path, num_train_epochs=1)
        trainer.add_callback(callback)
    else:
        trainer = quiet_trainer(
            None,
            arguments(tmp_path, num_train_epochs=1),
            model_init=network,
            train_dataset=Samples(),
            callbacks=[callback],
        )
    trainer.train()
    before = copied(network())
    assert moved(before, trainer) == {n for n in before if n.startswith(("head", "blocks.2"))}


def test_an_optimizer_of_the_users_own(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    trainer = trainer_of(
        tmp_path,
        FrostlineCallback(schedule=THAW_AT_4),
        model=model,
        given={"optimizers": (optimizer, None)},
        num_train_epochs=1,
    )
    before = copied(model)
    trainer.train()
    assert moved(before, trainer) == {n for n in before if n.startswith(("head", "blocks.2"))}


@pytest.mark.parametrize(
    ("guard", "error", "says"),
    [(True, fl.GuardError, "stem.weight"), (False, fl.FrozenChangedError, "stem.weight")],
    ids=["guard", "proof-alone"],
)
def test_what_moves_is_named(
    guard: bool, error: type[Exception], says: str, tmp_path: Path
) -> None:
    callback = FrostlineCallback(HEAD, guard=guard)
    with pytest.raises(error, match=says):
        trainer_of(tmp_path, callback, Writes(), num_train_epochs=1).train()


def test_after_an_error_the_trainer_can_train_again(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, FrostlineCallback(HEAD, replay=True), num_train_epochs=1)
    trainer.add_callback(Writes())
    with pytest.raises(fl.FrozenChangedError):
        trainer.train()
    trainer.remove_callback(Writes)
    trainer.model.load_state_dict(network().state_dict())
    trainer.train()
    assert trainer.state.log_history[-1]["frozen_tensors"] == 20


def test_mixed_precision(tmp_path: Path) -> None:
    losses = []
    for replay in (False, True):
        callback = FrostlineCallback(HEAD, replay=replay)
        trainer = trainer_of(tmp_path, callback, num_train_epochs=3, bf16=True)
        trainer.train()
        losses.append(trainer.losses)
    assert callback.replayer is not None
    assert callback.replayer.stats.replayed > 0
    assert losses[0] == losses[1]


def test_the_models_forward_is_as_it_was(tmp_path: Path) -> None:
    """While it is replayed its signature is its own, and a copy runs by itself."""
    model = network()
    seen: dict[str, Any] = {}

    class Looks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen["signature"] = list(inspect.signature(model.forward).parameters)
            seen["copy"] = copy.deepcopy(model)

    trainer = trainer_of(
        tmp_path, FrostlineCallback(HEAD, replay=True), Looks(), model=model, num_train_epochs=1
    )
    trainer.train()
    assert seen["signature"] == ["x", "labels"]
    assert seen["copy"].forward.__self__ is seen["copy"]
    assert "forward" not in vars(model)


def test_samples_that_never_come_again_end_replay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Noisy(Samples):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            sample = super().__getitem__(index)
            return {**sample, "x": sample["x"] + torch.randn(16)}

    callback = FrostlineCallback(HEAD, replay=True)
    trainer = quiet_trainer(
        network(),
        arguments(tmp_path, num_train_epochs=3),
        train_dataset=Noisy(),
        callbacks=[callback],
    )
    trainer.train()
    assert "44 of 44 samples" in str(callback.declined)
    assert "replay was declined" in caplog.text
    assert callback.replayer is not None
    assert callback.replayer.stats.replayed == 0


def test_a_model_that_writes_into_the_dict_that_it_is_given_is_replayed() -> None:
    """So does a SentenceTransformer, which its trainer calls several times a batch."""

    class Writing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            features["tokens"] = self.body(features["x"])
            features["embedding"] = self.head(features["tokens"])
            return features

    model = Writing()
    fl.freeze(model, "body")
    replayed, x = ReplayedForward(model, "memory"), torch.randn(16, 4)
    outputs = [model({"x": x[:8]})["embedding"] for _ in range(4)]
    assert replayed.replayer.stats.replayed == 3
    assert all(torch.equal(outputs[0], output) for output in outputs)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: FrostlineCallback(), fl.PlanError, "neither a plan nor a schedule"),
        (lambda: FrostlineCallback("blocks.9"), fl.SelectorError, "blocks.9"),
        (lambda: FrostlineCallback("nowhere.yaml"), fl.PlanError, "nowhere.yaml"),
        (lambda: FrostlineCallback({"frostline": 1}), fl.PlanError, "rules"),
        (lambda: FrostlineCallback("**"), fl.PlanError, "nothing to train"),
        (lambda: FrostlineCallback(schedule="lissa"), fl.ScheduleError, "lisa"),
        (lambda: FrostlineCallback(HEAD, replay=3), fl.ReplayError, "replay is"),  # type: ignore[arg-type]
    ],
    ids=["nothing", "no-match", "no-file", "no-plan", "all-frozen", "no-schedule", "no-store"],
)
def test_bad_input(
    make: Callable[[], FrostlineCallback], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        trainer_of(tmp_path, make()).train()


def test_a_plan_that_matches_nothing_is_refused_when_the_trainer_is_made(tmp_path: Path) -> None:
    with pytest.raises(fl.SelectorError, match=r"blocks\.9"):
        trainer_of(tmp_path, FrostlineCallback("blocks.9"))


@pytest.mark.parametrize(
    ("first", "second", "error", "says"),
    [
        (
            {"plan": fl.Plan.all_but(["head", "blocks.1"])},
            {"plan": HEAD},  # as many tensors of the same shapes: torch would take it
            fl.PlanError,
            r"blocks\.1.* frozen here and not there",
        ),
        ({"plan": HEAD}, {"schedule": THAW_AT_4}, fl.FrostlineError, "frozen there and not here"),
        (
            {"plan": HEAD},
            {"plan": HEAD, "schedule": [{"epoch": 0, "train": ["head"]}]},
            fl.ScheduleError,
            "no schedule's state",
        ),
        ({"schedule": THAW_AT_4}, {"schedule": "lisa"}, fl.ScheduleError, "explicit"),
        ({"schedule": THAW_AT_4}, {"plan": HEAD}, fl.FrostlineError, "frozen here and not"),
    ],
    ids=["same-shapes", "a-schedule", "a-schedule-besides", "another-schedule", "a-plan-instead"],
)
def test_a_checkpoint_of_another_run_is_refused(
    first: dict[str, Any],
    second: dict[str, Any],
    error: type[Exception],
    says: str,
    tmp_path: Path,
) -> None:
    trainer_of(tmp_path, FrostlineCallback(**first), StopAfter(2)).train()
    with pytest.raises(error, match=says):
        trainer_of(tmp_path, FrostlineCallback(**second)).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("frostline.integrations.huggingface")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'frostline\[hf\]'"):
        importlib.import_module("frostline.integrations.huggingface")


def test_a_run_without_the_callback_goes_on_with_it(tmp_path: Path) -> None:
    trainer_of(tmp_path, StopAfter(2)).train()
    trainer = trainer_of(tmp_path, FrostlineCallback(HEAD), num_train_epochs=1)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.log_history[-1]["frozen_steps_guarded"] == STEPS - 2
