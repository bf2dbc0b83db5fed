"""Accelerate's and Fabric's prepared objects, in any order with Frostline's calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from framework_accelerate import fresh_accelerator
from framework_jobs import HEAD, EpochShuffle, Network, Samples, copied
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

import frostline as fl
from frostline.integrations.accelerate import keep_in_state, prepare

Prepared = tuple[nn.Module, Any, Any, Callable[[Tensor], None]]


def parts(size: int = 4) -> tuple[nn.Module, DataLoader[Any]]:
    torch.manual_seed(0)
    data = Samples()
    return Network(), DataLoader(data, size, sampler=EpochShuffle(len(data), 0))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return fl.optimizer(torch.optim.AdamW, model, lr=1e-2)


def accelerate_all_then_freeze(replay: bool) -> Prepared:
    accelerator = fresh_accelerator()
    model, loader = parts()
    model, loader = accelerator.prepare(model, loader)
    fl.freeze(model, HEAD)
    optimizer = accelerator.prepare(optimizer_of(model))
    return model, optimizer, fl.replay(model, loader) if replay else loader, accelerator.backward


def accelerate_after_replay(replay: bool) -> Prepared:
    accelerator = fresh_accelerator()
    model, loader = parts()
    fl.freeze(model, HEAD)
    given = fl.replay(model, loader) if replay else loader
    given, optimizer, model = prepare(accelerator, given, optimizer_of(model), model)
    return model, optimizer, given, accelerator.backward


def accelerate_in_bf16(replay: bool) -> Prepared:
    accelerator = fresh_accelerator(mixed_precision="bf16")
    model, loader = parts()
    fl.freeze(model, HEAD)
    model, optimizer, loader = accelerator.prepare(model, optimizer_of(model), loader)
    return model, optimizer, fl.replay(model, loader) if replay else loader, accelerator.backward


def fabric_then_freeze(replay: bool) -> Prepared:
    fabric = Fabric(accelerator="cpu", devices=1)
    model, loader = parts()
    model = fabric.setup_module(model)
    fl.freeze(model, HEAD)
    optimizer = fabric.setup_optimizers(optimizer_of(model))
    loader = fabric.setup_dataloaders(loader)
    return model, optimizer, fl.replay(model, loader) if replay else loader, fabric.backward


def fabric_after_freeze(replay: bool) -> Prepared:
    fabric = Fabric(accelerator="cpu", devices=1)
    model, loader = parts()
    fl.freeze(model, HEAD)
    model, optimizer = fabric.setup(model, optimizer_of(model))
    loader = fabric.setup_dataloaders(loader)
    return model, optimizer, fl.replay(model, loader) if replay else loader, fabric.backward


ORDERS = [
    accelerate_all_then_freeze,
    accelerate_after_replay,
    accelerate_in_bf16,
    fabric_then_freeze,
    fabric_after_freeze,
]


def trained(order: Callable[[bool], Prepared], *, replay: bool) -> tuple[list[float], Any, Any]:
    model, optimizer, batches, backward = order(replay)
    frozen = fl.freeze(model, HEAD)
    losses = []
    torch.manual_seed(3)
    with fl.guard(model, optimizer) as guard:
        for _ in range(3):
            model.train()
            for batch in batches:
                loss = model(**batch)["loss"]
                backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
    frozen.verify()
    assert guard.report.steps == 33
    return losses, copied(model), batches


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.__name__)
def test_any_order_replays_and_changes_no_bit(order: Callable[[bool], Prepared]) -> None:
    losses, weights, _ = trained(order, replay=False)
    replayed_losses, replayed_weights, batches = trained(order, replay=True)
    assert batches.replayer.stats.replayed == 22
    assert replayed_losses == losses
    assert all(torch.equal(weights[name], replayed_weights[name]) for name in weights)


def test_the_epoch_s_end_is_seen_through_a_replay() -> None:
    """11 batches in threes: the last step takes what is left, two, and not what comes next."""
    stepped = []
    for replay in (False, True):
        accelerator = fresh_accelerator(gradient_accumulation_steps=3)
        model, loader = parts()
        fl.freeze(model, HEAD)
        given = fl.replay(model, loader) if replay else loader
        model, optimizer, given = prepare(accelerator, model, optimizer_of(model), given)
        synced = []
        for _ in range(2):
            for batch in given:
                with accelerator.accumulate(model):
                    accelerator.backward(model(**batch)["loss"])
                    optimizer.step()
                    optimizer.zero_grad()
                    synced.append(accelerator.sync_gradients)
        stepped.append(synced)
    assert stepped[1] == stepped[0]
    assert sum(stepped[0]) == 8


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model, optimizer: fresh_accelerator().prepare(model, optimizer),
        lambda model, optimizer: Fabric(accelerator="cpu", devices=1).setup(model, optimizer),
    ],
    ids=["accelerate", "fabric"],
)
def test_a_prepared_optimizer_takes_in_what_thaws(wrap: Any) -> None:
    model, _ = parts()
    fl.freeze(model, HEAD)
    inner = torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad])
    prepared, optimizer = wrap(model, inner)
    fl.unfreeze(prepared, "blocks.1.up.bias")
    report = fl.sync(prepared, optimizer)
    assert report.added == ("blocks.1.up.bias",)
    assert any(p is model.blocks[1].up.bias for p in inner.param_groups[0]["params"])


def test_a_schedule_on_fabric_thaws_what_then_trains() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    model, loader = parts()
    plain = optimizer_of(model)
    wrapped, optimizer = fabric.setup(model, plain)
    phases = [{"epoch": 0, "train": ["head"]}, {"epoch": 1, "train": ["head", "blocks.2"]}]
    freezer = fl.Freezer(wrapped, optimizer, schedule=phases)
    before = copied(model)
    for _ in range(2):
        for batch in fabric.setup_dataloaders(loader):
            optimizer.zero_grad()
            fabric.backward(wrapped(**batch)["loss"])
            optimizer.step()
            freezer.step()
        freezer.epoch()
    after = copied(model)
    moved = {
        name.rpartition(".")[0] for name in after if not torch.equal(before[name], after[name])
    }
    assert moved == {"head", "blocks.2.norm", "blocks.2.up", "blocks.2.down"}


def test_a_state_saved_without_the_freeze_is_refused(tmp_path: Path) -> None:
    accelerator = fresh_accelerator()
    model, _ = parts()
    model = accelerator.prepare(model)
    accelerator.save_state(str(tmp_path))
    keep_in_state(accelerator, fl.freeze(model, HEAD))
    with pytest.raises(fl.CheckpointError, match="saved without the freeze"):
        accelerator.load_state(str(tmp_path))


def test_a_state_of_a_schedule_is_no_state_of_a_plan(tmp_path: Path) -> None:
    def prepared(schedule: bool) -> Accelerator:
        accelerator = fresh_accelerator()
        model, _ = parts()
        model, optimizer = accelerator.prepare(model, optimizer_of(model))
        if schedule:
            phases = [{"epoch": 0, "train": ["head"]}]
            keep_in_state(accelerator, fl.Freezer(model, optimizer, schedule=phases))
        else:
            keep_in_state(accelerator, fl.freeze(model, HEAD))
        return accelerator

    prepared(True).save_state(str(tmp_path))
    with pytest.raises(fl.CheckpointError, match="with a schedule"):
        prepared(False).load_state(str(tmp_path))


def test_several_are_kept_each_by_itself(tmp_path: Path) -> None:
    """A plan and a schedule of one model, and a plan of another."""

    def prepared() -> tuple[Accelerator, fl.Freezer, nn.Module]:
        accelerator = fresh_accelerator()
        model, other = parts()[0], parts()[0]
        plan = fl.freeze(model, "blocks.0")
        optimizer = fl.optimizer(torch.optim.AdamW, model, lr=1e-2, declare_all=True)
        model, other, optimizer = accelerator.prepare(model, other, optimizer)
        phases = [{"epoch": 0, "train": ["head"]}, {"epoch": 1, "train": ["head", "blocks.2"]}]
        freezer = fl.Freezer(model, optimizer, schedule=phases, fixed="blocks.0")
        for holder in (plan, freezer, fl.freeze(other, HEAD)):
            keep_in_state(accelerator, holder)
        return accelerator, freezer, other

    accelerator, freezer, other = prepared()
    freezer.epoch()
    torch.nn.init.ones_(other.head.bias)
    accelerator.save_state(str(tmp_path))
    again, resumed, second = prepared()
    again.load_state(str(tmp_path))
    assert resumed.trains == freezer.trains
    assert resumed.position.epoch == 1
    assert torch.equal(second.head.bias, other.head.bias)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_sharded_run_is_refused_before_it_could_hang(kind: str) -> None:
    accelerator = fresh_accelerator()
    model, _ = parts()
    frozen = fl.freeze(accelerator.prepare(model), HEAD)
    accelerator.state.distributed_type = DistributedType[kind]
    with pytest.raises(fl.CheckpointError, match=f"distributed_type {kind}.*Leave it out"):
        keep_in_state(accelerator, frozen)
