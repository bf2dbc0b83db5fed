"""What is Lightning's own: its hooks, its two ways to step, its checkpoints, its loops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from framework_jobs import HEAD, STEPS, EpochShuffle, Network, Samples, copied
from framework_lightning import Learner, make_trainer, quietly
from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

import frostline as fl
from frostline.freezing import Frozen
from frostline.integrations.lightning import FrostlineCallback
from frostline.schedules import Decision, Progress, Signals, State, Traits

LATER = [{"epoch": 0, "train": ["head"]}, {"epoch": 1, "train": ["head", "blocks.2"]}]


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network()


def batches(size: int = 8) -> DataLoader[Any]:
    data = Samples()
    return DataLoader(data, batch_size=size, sampler=EpochShuffle(len(data), 0))


def fit(learner: pl.LightningModule, callbacks: list[Any], out: Path, **options: Any) -> pl.Trainer:
    path = options.pop("ckpt_path", None)
    loaders = options.pop("loaders", (batches(),))
    trainer = make_trainer(out, callbacks, **options)
    with quietly():
        trainer.fit(learner, *loaders, ckpt_path=path, weights_only=False)
    return trainer


def different(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
    return {name for name, tensor in one.items() if not torch.equal(tensor, other[name])}


class Validated(Learner):
    """Logs a validation metric of its own making, one an epoch."""

    metrics: tuple[float, ...] = ()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.net(**batch)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking and self.metrics:
            self.log("score", self.metrics[self.current_epoch])


class Pair(pl.LightningModule):
    """Two networks with an optimizer each, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = network(1), network(2)
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        torch.manual_seed(100 * self.current_epoch + batch_idx)
        for net, optimizer in zip((self.first, self.second), self.optimizers(), strict=True):
            optimizer.zero_grad()
            loss = net(**batch)["loss"]
            self.manual_backward(loss)
            optimizer.step()
            self.losses.append(loss.item())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.AdamW(self.first.parameters(), lr=1e-2),
            torch.optim.SGD(self.second.parameters(), lr=1e-1, momentum=0.9),
        ]


PAIR_LATER = [
    {"epoch": 0, "train": ["head"]},
    {"epoch": 1, "train": ["head", "blocks.2", "first.blocks.1"]},
]


def held(trainer: pl.Trainer) -> list[int]:
    return [len(o.param_groups[0]["params"]) for o in trainer.optimizers]


def test_two_optimizers_each_get_back_their_own(tmp_path: Path) -> None:
    pair = Pair()
    before = copied(pair)
    trainer = fit(pair, [FrostlineCallback(schedule=PAIR_LATER)], tmp_path, max_epochs=2)
    moved = {name.rpartition(".")[0] for name in different(before, copied(pair))}
    assert {name[:14] for name in moved if "blocks" in name} == {
        "first.blocks.1",
        "first.blocks.2",
        "second.blocks.",
    }
    assert not any(name.startswith("second.blocks.1") for name in moved)
    # head 2; block 6 (norm, up, down): two blocks in the first network, one in the second.
    assert held(trainer) == [2 + 6 + 6, 2 + 6]
    own = {id(p) for p in pair.first.parameters()}
    assert {id(p) for p in trainer.optimizers[0].param_groups[0]["params"]} <= own


def test_two_optimizers_resume_past_a_thaw(tmp_path: Path) -> None:
    def run(epochs: int, **options: Any) -> tuple[Pair, pl.Trainer]:
        pair = Pair()
        callbacks = [FrostlineCallback(schedule=PAIR_LATER)]
        return pair, fit(pair, callbacks, tmp_path, max_epochs=epochs, **options)

    whole, _ = run(3)
    _, trainer = run(2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed, _ = run(3, ckpt_path=tmp_path / "two.ckpt")
    assert resumed.losses == whole.losses[2 * 2 * STEPS :]
    assert different(copied(resumed), copied(whole)) == set()


def test_a_checkpoint_of_the_validation_resumes_at_the_next_epoch(tmp_path: Path) -> None:
    def run(**options: Any) -> Learner:
        learner = Validated(network())
        callbacks = [
            FrostlineCallback(schedule=LATER),
            ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=False),
        ]
        options |= {"max_epochs": 3, "loaders": (batches(), batches(4))}
        fit(learner, callbacks, tmp_path, enable_checkpointing=True, **options)
        return learner

    whole = run()
    # Saved before the end of epoch 0 was told to anyone; what thaws then must thaw on resuming.
    resumed = run(ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.losses == whole.losses[STEPS:]
    assert different(copied(resumed.net), copied(whole.net)) == set()


def test_the_monitored_metric_moves_a_schedule(tmp_path: Path) -> None:
    learner = Validated(network())
    learner.metrics = (0.5, 0.4, 0.4, 0.9)  # no better after the second and the third epoch
    phases = [{"epoch": 0, "train": ["head"]}, {"stall": 2, "train": ["head", "blocks.2"]}]
    callback = FrostlineCallback(schedule=phases)
    stop = pl.callbacks.EarlyStopping("score", mode="max", patience=10)
    fit(learner, [callback, stop], tmp_path, max_epochs=4, loaders=(batches(), batches(4)))
    assert callback.freezer is not None
    assert [event.epoch for event in callback.freezer.events if event.kind == "thaw"] == [3]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A schedule that looks at gradients, and lets everything train."""

    name: ClassVar[str] = "reading"
    traits: ClassVar[Traits] = Traits()
    seen: list[float]

    def start(self, progress: Progress) -> State:
        return {}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        return frozenset({"gradient_norms"})

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        if progress.at == "step":
            self.seen.append(signals["gradient_norms"]["head"])
        train = frozenset({"head"}) if progress.at == "start" else None
        return Decision(state=state, train=train, why="")


def test_signals_are_of_the_gradients_that_the_step_used(tmp_path: Path) -> None:
    class Noting(Learner):
        norms: list[float]

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            grads = [p.grad for p in self.net.head.parameters() if p.grad is not None]
            self.norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))

    learner, seen = Noting(network()), []
    learner.norms = []
    fit(learner, [FrostlineCallback(schedule=Reading(seen=seen))], tmp_path, max_epochs=1)
    assert seen == pytest.approx(learner.norms)
    assert len(seen) == STEPS


def test_a_schedule_s_factors_scale_the_rates(tmp_path: Path) -> None:
    class Plain(Learner):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    moved = []
    for factor in (1.0, 0.25):
        learner = Plain(network())
        before = learner.net.head.bias.detach().clone()
        phases = [{"epoch": 0, "train": ["head"], "rates": {"head": factor}}]
        fit(learner, [FrostlineCallback(schedule=phases)], tmp_path, max_steps=1)
        moved.append((learner.net.head.bias.detach() - before).norm().item())
    assert moved[1] == pytest.approx(moved[0] / 4)


def test_bf16_with_replay_is_the_run_without(tmp_path: Path) -> None:
    runs = []
    for replay in (False, True):
        learner = Learner(network())
        callback = FrostlineCallback(plan=HEAD, replay=replay)
        options: dict[str, Any] = {"max_epochs": 3, "precision": "bf16-mixed"}
        fit(learner, [callback], tmp_path, loaders=(batches(4),), **options)
        runs.append((learner, callback))
    (plain, _), (replayed, callback) = runs
    assert callback.replayer is not None
    assert callback.replayer.stats.replayed == 22
    assert replayed.losses == plain.losses
    assert different(copied(replayed.net), copied(plain.net)) == set()


def test_evaluation_in_the_middle_of_replayed_epochs(tmp_path: Path) -> None:
    runs = []
    for replay in (False, True):
        learner = Validated(network())
        callback = FrostlineCallback(plan=HEAD, replay=replay)
        options: dict[str, Any] = {"max_epochs": 2, "val_check_interval": 3}
        fit(learner, [callback], tmp_path, loaders=(batches(4), batches(4)), **options)
        runs.append((learner, callback))
    (plain, _), (replayed, callback) = runs
    assert callback.replayer is not None
    assert callback.replayer.stats.replayed == 11
    assert replayed.losses == plain.losses
    assert different(copied(replayed.net), copied(plain.net)) == set()
    # Lightning has put every mode back, and the frozen part still runs in eval mode.
    assert replayed.net.blocks[2].training
    assert callback.frozen is not None
    callback.frozen.verify()


class Backbone(Learner):
    """The shape that most LightningModules have: the step calls two parts, one of them frozen."""

    def __init__(self) -> None:
        super().__init__(network())
        self.backbone = nn.Sequential(self.net.stem, *self.net.blocks)
        self.head = self.net.head
        del self.net

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch["x"]), batch["labels"])
        self.losses.append(loss.item())
        return loss

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(x))
        return logits


def test_a_backbone_called_by_the_step_itself_is_replayed(tmp_path: Path) -> None:
    losses = []
    for replay in (False, True):
        learner = Backbone()
        callback = FrostlineCallback(plan="backbone", replay=replay)
        fit(learner, [callback], tmp_path, max_epochs=3, loaders=(batches(4),))
        losses.append(learner.losses)
    assert callback.replayer is not None
    assert callback.replayer.stats.replayed >= 22
    assert losses[1] == losses[0]


def test_a_second_fit_goes_on(tmp_path: Path) -> None:
    whole, parts = Learner(network()), Learner(network())
    fit(whole, [FrostlineCallback(schedule=LATER)], tmp_path, max_epochs=2)
    callback = FrostlineCallback(schedule=LATER)
    trainer = fit(parts, [callback], tmp_path, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    with quietly():
        trainer.fit(parts, batches())
    assert parts.losses[:STEPS] == whole.losses[:STEPS]
    assert callback.freezer is not None
    assert callback.freezer.position.epoch == 1
    assert any("blocks.2" in name for name in callback.freezer.trains)


def test_the_guard_stops_a_writer_and_the_trainer_is_left_as_it_was(tmp_path: Path) -> None:
    class Writing(Learner):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                self.net.stem.weight.data.add_(1)

    callback = FrostlineCallback(plan=HEAD, replay=True)
    trainer = make_trainer(tmp_path, [callback], max_epochs=1)
    with quietly(), pytest.raises(fl.FrozenChangedError, match=r"stem\.weight"):
        trainer.fit(Writing(network()), batches())
    assert "process_dataloader" not in vars(trainer.strategy)


def test_without_a_guard_the_end_of_fit_still_proves(tmp_path: Path) -> None:
    class Writing(Learner):
        def on_train_epoch_end(self) -> None:
            self.net.stem.weight.data.add_(1)

    with pytest.raises(fl.FrozenChangedError, match=r"stem\.weight"):
        fit(
            Writing(network()),
            [FrostlineCallback(plan=HEAD, guard=False)],
            tmp_path,
            max_epochs=1,
        )


def test_lightning_s_own_freeze_lets_batchnorm_train_and_the_plan_does_not(tmp_path: Path) -> None:
    class Finetuning(BaseFinetuning):
        def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
            self.freeze([pl_module.net.stem, pl_module.net.blocks])

        def finetune_function(self, *_: Any) -> None:
            pass

    def moved(callback: pl.Callback) -> set[str]:
        learner = Learner(network())
        before = copied(learner.net)
        fit(learner, [callback], tmp_path, max_epochs=1)
        return {name for name in different(before, copied(learner.net)) if "head" not in name}

    theirs = moved(Finetuning())
    assert {"blocks.0.norm.weight", "blocks.0.norm.running_mean"} <= theirs
    assert moved(FrostlineCallback(plan=fl.Plan.all_but("head"))) == set()


def test_what_was_frozen_by_hand_is_held_and_proven(tmp_path: Path) -> None:
    learner = Learner(network())
    learner.net.stem.requires_grad_(False)
    callback = FrostlineCallback()
    fit(learner, [callback], tmp_path, max_epochs=1)
    assert isinstance(callback.frozen, Frozen)
    assert callback.frozen.names == ("net.stem.weight", "net.stem.bias")
    assert callback.proof is not None
    assert callback.proof.parameters == 2
