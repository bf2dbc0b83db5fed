"""Freezing under autocast and with a gradient scaler."""

from __future__ import annotations

import pytest
import torch
from combining import FROZEN, bits, loss_of, network, sgd, train
from torch import Tensor, nn

import frostline as fl


def in_bfloat16(model: nn.Module, step: int) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return loss_of(model, step)


def test_autocast_leaves_frozen_weights_and_statistics_alone() -> None:
    model = network()
    frozen = fl.freeze(model, FROZEN)
    with fl.guard(model, optimizer := sgd(model)):
        for step in range(2):
            optimizer.zero_grad()
            in_bfloat16(model, step).backward()
            optimizer.step()
    assert frozen.verify().tensors == 20
    assert model.head.weight.grad is not None


def test_a_thaw_within_one_autocast_region_takes_no_stale_cast() -> None:
    """Autocast keeps casts of what trains until its region ends; thawed weights join them."""
    runs = []
    for outer in (True, False):
        model = network()
        fl.freeze(model, FROZEN)
        optimizer = sgd(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=outer):
            for step in range(4):
                if step == 2:
                    fl.unfreeze(model, "blocks.1", gradients="drop")
                torch.clear_autocast_cache()
                optimizer.zero_grad()
                loss = loss_of(model, step) if outer else in_bfloat16(model, step)
                loss.backward()
                optimizer.step()
        assert model.blocks[1].up.weight.grad is not None
        runs.append(bits(model))
    assert runs[0] == runs[1]


def test_a_scaler_steps_over_frozen_parameters() -> None:
    plain, scaled = network(), network()
    losses = []
    for model, enabled in ((plain, False), (scaled, True)):
        fl.freeze(model, FROZEN)
        optimizer = sgd(model)
        # A power of two: scaling and unscaling change no bit.
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        for step in range(3):
            if step == 2:
                fl.unfreeze(model, "blocks.1", gradients="drop")
            optimizer.zero_grad()
            loss = loss_of(model, step)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
    assert losses[:3] == losses[3:]
    assert bits(plain) == bits(scaled)


def test_a_step_that_the_scaler_leaves_out_moves_no_schedule() -> None:
    model = network()
    optimizer = sgd(model)
    freezer = fl.Freezer(
        model,
        optimizer,
        schedule=fl.schedules.Explicit(
            [{"step": 0, "train": ["head"]}, {"step": 2, "train": ["head", "blocks.2"]}]
        ),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trains = []
    for step in range(4):
        optimizer.zero_grad()
        loss = loss_of(freezer.model, step)
        scaler.scale(loss * (float("inf") if step == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        freezer.step()
        trains.append("blocks.2.up.weight" in freezer.trains)
    freezer.close()
    # Of the two steps that the second phase waits for, the second did not count.
    assert trains == [False, False, True, True]


def test_a_scaler_without_anything_that_trains_says_so() -> None:
    model = network()
    with pytest.raises(fl.PlanError, match=r"nothing is left|leaves nothing|would be frozen"):
        fl.freeze(model, "**")
    fl.freeze(model, "**", everything=True)
    with pytest.raises(fl.OptimizerError, match="trainable"):
        fl.optimizer(torch.optim.SGD, model, lr=0.1)


def test_training_in_bfloat16_is_the_same_with_and_without_frostline() -> None:
    by_hand, model = network(), network()
    for name, parameter in by_hand.named_parameters():
        parameter.requires_grad = not name.startswith(tuple(FROZEN))
    by_hand.train = lambda mode=True: by_hand  # type: ignore[method-assign]
    for part in (by_hand.stem, by_hand.blocks[0], by_hand.blocks[1]):
        part.eval()
    fl.freeze(model, FROZEN)
    assert train(model, loss=in_bfloat16) == train(by_hand, loss=in_bfloat16)
    assert bits(model) == bits(by_hand)
