"""What is foretold of a sharded step is what ranks hold and move, measured in real processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch import multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from frostline.errors import MeasureError
from frostline.measure import ShardedStep, sharded_step

BLOCKS = tuple(f"blocks.{index}" for index in range(4))
COMPUTE, REDUCE = torch.bfloat16, torch.float32


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(12, 30)
        self.narrow = nn.Linear(30, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(torch.relu(self.wide(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, 12)
        self.blocks = nn.ModuleList(Block() for _ in BLOCKS)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def train_all(model: nn.Module) -> None:
    pass


def train_the_head(model: nn.Module) -> None:
    model.requires_grad_(False)
    model.head.requires_grad_(True)


def train_the_last_two(model: nn.Module) -> None:
    train_the_head(model)
    model.blocks[2:].requires_grad_(True)


def freeze_the_middle(model: nn.Module) -> None:
    model.blocks[1:3].requires_grad_(False)


def train_biases(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


PLANS: dict[str, Callable[[nn.Module], None]] = {
    "all": train_all,
    "the head": train_the_head,
    "the last two blocks": train_the_last_two,
    "all but the middle": freeze_the_middle,
    "the biases": train_biases,
}


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).float().square().mean()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], momentum=0.9)


def foretell(plan: str, ranks: int, skip: int = 0) -> ShardedStep:
    model = Net()
    PLANS[plan](model)
    return sharded_step(
        model,
        torch.zeros(2, 7, dtype=torch.int64),
        loss,
        optimizer=adam,
        blocks=BLOCKS,
        ranks=ranks,
        compute=COMPUTE,
        reduce=REDUCE,
        skip=skip,
    )


class Traffic(TorchDispatchMode):
    """Counts what goes into a reduction, and what comes out of a gathering."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered = self.reduced = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if "allgather_base" in str(func):
            self.gathered += args[0].nbytes
        elif "reduce_scatter_base" in str(func):
            self.reduced += args[1].nbytes
        return func(*args, **(kwargs or {}))


def local_bytes(tensors: list[Tensor | None]) -> int:
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None]
    return sum(tensor.nbytes for tensor in local)


def measure(plan: str, ranks: int) -> dict[str, int]:
    mesh = init_device_mesh("cpu", (ranks,))
    model = Net()
    PLANS[plan](model)
    shard = partial(
        fully_shard,
        mesh=mesh,
        mp_policy=MixedPrecisionPolicy(param_dtype=COMPUTE, reduce_dtype=REDUCE),
    )
    for block in model.blocks:
        shard(block)
    shard(model)
    optimizer = adam(model)
    for _ in range(2):  # the first pass settles in which order groups are fetched ahead
        optimizer.zero_grad()
        with Traffic() as traffic:
            loss(model, torch.zeros(2, 7, dtype=torch.int64)).backward()
        optimizer.step()
    parameters = list(model.parameters())
    return {
        "parameter_bytes": local_bytes(parameters),
        "gradient_bytes": local_bytes([p.grad for p in parameters]),
        "optimizer_state_bytes": local_bytes(
            [state["momentum_buffer"] for state in optimizer.state.values()]
        ),
        "gathered_bytes": traffic.gathered,
        "reduced_bytes": traffic.reduced,
    }


def work(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
    )
    found = {plan: measure(plan, ranks) for plan in PLANS}
    everyone: list[Any] = [None] * ranks
    distributed.all_gather_object(everyone, found)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(everyone))
    distributed.barrier()  # a rank that leaves early takes its connections along
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "ranks", [2, pytest.param(4, marks=pytest.mark.slow)], ids=["two ranks", "four ranks"]
)
def test_ranks_hold_and_move_what_was_foretold(ranks: int, tmp_path: Path) -> None:
    mp.spawn(work, (ranks, str(tmp_path)), nprocs=ranks)
    everyone = json.loads((tmp_path / "found.json").read_text())
    for plan in PLANS:
        ahead = foretell(plan, ranks)
        for moved in ("gathered_bytes", "reduced_bytes"):
            assert {found[plan][moved] for found in everyone} == {getattr(ahead, moved)}, plan
        # Rows that do not divide lie on the first ranks: the fullest holds what was foretold.
        for held in ("parameter_bytes", "gradient_bytes"):
            assert max(found[plan][held] for found in everyone) == getattr(ahead, held), plan


def test_what_is_skipped_is_not_gathered() -> None:
    plain, skipping = foretell("the last two blocks", 4), foretell("the last two blocks", 4, skip=2)
    block = 32 * 12 + 32 + 12 * 30 + 12  # 30 rows become 32, to be shared by 4
    # Both blocks in the forward pass, and the one next to the live ones ahead of time in backward.
    assert plain.gathered_bytes - skipping.gathered_bytes == 3 * block * COMPUTE.itemsize
    assert skipping.handed_on_bytes == 2 * 7 * 12 * COMPUTE.itemsize
    assert plain.handed_on_bytes == 0


def test_a_model_without_content_is_enough() -> None:
    with torch.device("meta"):
        model = Net()
    train_the_head(model)
    ahead = sharded_step(
        model,
        torch.zeros(2, 7, dtype=torch.int64),
        loss,
        optimizer=adam,
        blocks=BLOCKS,
        ranks=2,
        compute=COMPUTE,
        reduce=REDUCE,
    )
    assert ahead == foretell("the head", 2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"blocks": ["blocks.9"]}, "blocks.9"),
        ({"ranks": 0}, "at least 1, got 0"),
        ({"skip": 3}, "first 3 blocks can't all be skipped"),
    ],
    ids=["no such block", "no ranks", "a live block skipped"],
)
def test_bad_input(options: dict[str, Any], reason: str) -> None:
    model = Net()
    train_the_last_two(model)
    given = {"blocks": BLOCKS, "ranks": 2, "optimizer": adam, **options}
    with pytest.raises(MeasureError, match=reason):
        sharded_step(model, torch.zeros(2, 7, dtype=torch.int64), loss, **given)
