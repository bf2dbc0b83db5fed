"""A freezer in two processes: they freeze alike, and their weights stay equal."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import torch
from scheduling import batch, busy
from torch import distributed, nn
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from zoo import Net

import frostline as fl
from frostline.freezer import Freezer
from frostline.schedules import LISA

METHODS = ("gradual-unfreeze", "plasticity", "lisa", "autofreeze", "autorgn")


def train(rank: int, schedule, *, wrapped: bool) -> dict[str, object]:
    torch.manual_seed(0)
    model = Net(4)
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1, momentum=0.9)
    given = DistributedDataParallel(model) if wrapped else model
    freezer = Freezer(
        given, optimizer, schedule=schedule, distributed="ddp", total_steps=12, steps_per_epoch=3
    )
    assert isinstance(freezer.model, DistributedDataParallel)
    for step in range(12):
        inputs, targets = batch(2 * step + rank)
        torch.manual_seed(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(freezer.model(inputs), targets).backward()
        optimizer.step()
        freezer.step()
    freezer.epoch(metric=0.5 + rank)
    prints = {name: fl.fingerprint(p) for name, p in model.named_parameters()}
    frozen = [row.frozen for row in freezer.timeline()]
    freezer.close()
    return {"prints": prints, "frozen": frozen}


def both(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    said: dict[str, object] = {
        name: train(rank, busy(name), wrapped=name == "lisa") for name in METHODS
    }
    try:
        train(rank, LISA(period=1, seed=rank), wrapped=False)
    except fl.TransitionError as error:
        said["odds"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(said))
    # In this order: a rank that takes the group down while the other's reducer is still at work,
    # or before its own is gone, aborts the process now and then.
    distributed.barrier()
    gc.collect()
    distributed.destroy_process_group()


def test_ranks_freeze_alike_and_stay_equal(tmp_path: Path) -> None:
    mp.spawn(both, args=(tmp_path,), nprocs=2)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for name in METHODS:
        assert one[name] == other[name]
        assert len(one[name]["frozen"]) > 1, name
    assert "would train different parts" in one["odds"]
