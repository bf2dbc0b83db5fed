"""Buffers under DistributedDataParallel, and signals that differ from rank to rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parallel_runs import bits
from ranking import Party
from scheduling import batch, busy
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from zoo import Net

import frostline as fl

METHODS = ("plasticity", "lisa", "autofreeze")
LONG = ("gradual-unfreeze", "autorgn")


def steps(freezer: fl.Freezer, optimizer: torch.optim.Optimizer, rank: int, numbers: range) -> None:
    for step in numbers:
        inputs, targets = batch(2 * step + rank)
        torch.manual_seed(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(freezer.model(inputs), targets).backward()
        optimizer.step()
        freezer.step()


def scheduled(rank: int, method: str) -> dict[str, Any]:
    """Batches, statistics and the metric are each rank's own; the decisions are not."""
    model = Net(4)
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1, momentum=0.9)
    freezer = fl.Freezer(
        DistributedDataParallel(model),
        optimizer,
        schedule=busy(method),
        total_steps=12,
        steps_per_epoch=3,
    )
    steps(freezer, optimizer, rank, range(12))
    freezer.epoch(metric=0.5 + rank)
    freezer.verify()
    frozen = [(row.step, row.frozen) for row in freezer.timeline()]
    freezer.close()
    prints = {name: fl.fingerprint(p) for name, p in model.named_parameters()}
    return {"prints": prints, "frozen": frozen}


@pytest.mark.parametrize(
    "method", [*METHODS, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]
)
def test_ranks_decide_alike_and_stay_equal(pair: Party, method: str) -> None:
    one, other = pair.values(scheduled, method)
    assert one == other
    assert len(one["frozen"]) > 1


def buffers(rank: int) -> dict[str, Any]:
    """The lower layers freeze after three steps, thaw after six."""
    model = Net(2)
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    low = [{"epoch": 0, "train": ["**"]}, {"step": 3, "train": ["layers.1", "head"]}]
    freezer = fl.Freezer(
        DistributedDataParallel(model), optimizer, schedule=[*low, {"step": 6, "train": ["**"]}]
    )
    steps(freezer, optimizer, rank, range(3))
    at_freeze = bits(model.layers[0])
    live = [name for name, _ in freezer.model.named_module_buffers.items()]
    steps(freezer, optimizer, rank, range(3, 5))
    freezer.verify()
    held = bits(model.layers[0])
    steps(freezer, optimizer, rank, range(5, 7))
    freezer.model(batch(99)[0])
    return {
        "at freeze": at_freeze,
        "held": held,
        "broadcast while frozen": live,
        "broadcast after": len(freezer.model.named_module_buffers),
    }


def test_frozen_statistics_are_alike_and_are_not_broadcast(pair: Party) -> None:
    one, other = pair.values(buffers)
    assert one == other
    assert one["held"] == one["at freeze"]
    assert one["broadcast while frozen"] == [
        f"layers.1.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    ]
    assert one["broadcast after"] == 6


@pytest.mark.filterwarnings("ignore:.broadcast_buffers. is deprecated")
def own_statistics(rank: int) -> list[str]:
    """A wrapper that is told to leave buffers alone: each rank freezes its own."""
    model = Net(2)
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    wrapper = DistributedDataParallel(model, broadcast_buffers=False)
    model.layers[0].norm.running_mean.fill_(rank)
    schedule = [{"epoch": 0, "train": ["**"]}, {"step": 2, "train": ["head"]}]
    freezer = fl.Freezer(wrapper, optimizer, schedule=schedule)
    steps(freezer, optimizer, rank, range(4))
    freezer.verify()
    return list(bits(model.layers[0].norm).values())[2:4]


def test_a_wrapper_that_broadcasts_nothing_leaves_each_rank_its_own(pair: Party) -> None:
    one, other = pair.values(own_statistics)
    assert one[0] != other[0]
