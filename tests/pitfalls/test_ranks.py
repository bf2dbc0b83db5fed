"""Rows of PITFALLS that only show between processes, on two of them over gloo."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl


def network(rank: int) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].running_mean.fill_(rank)
    return model


def verdict(frozen: fl.Frozen) -> list[str]:
    try:
        frozen.verify()
    except fl.FrozenChangedError as error:
        return [change.name for change in error.changes]
    return []


def broadcast(rank: int, folder: Path) -> None:
    """Freeze ranks that differ, wrap, run one step; write what the proof says."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = network(rank)
    frozen = fl.freeze(model, all_but="2")
    wrapped = DistributedDataParallel(model)
    wrapped(torch.ones(3, 4)).sum().backward()
    (folder / f"{rank}.json").write_text(json.dumps(verdict(frozen)))
    # In this order: a rank that takes the group down while the other's reducer is still at work,
    # or before its own is gone, aborts the process now and then.
    distributed.barrier()
    del wrapped
    distributed.destroy_process_group()


def test_ddp_broadcasts_buffers(tmp_path: Path) -> None:
    """Rank 1's frozen statistics become rank 0's: the proof names them there, and there alone."""
    mp.spawn(broadcast, args=(tmp_path,), nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [[], ["1.running_mean"]]
