"""What freezing saves and costs under DistributedDataParallel, on two processes over gloo.

Targets: the bytes that are reduced in a step are those that train, wherever the freeze came; a
step with Frostline takes at most 2 % more than the same freezing by hand; one small collective for
a transition beside what the model itself needs, and none for a step.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from _report import heading, interleave, median_ratio, medians, table, verdict
from step_cost import DEPTH, SIDE, SmallViT
from torch import distributed, nn
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from frostline.units import format_bytes

RANKS, BATCH = 2, 4
HALF = [*(f"blocks.{number}" for number in range(DEPTH // 2, DEPTH)), "norm", "head"]
UPPER = [{"epoch": 0, "train": HALF}]


class Counter:
    """Counts the bytes that a wrapper hands to the reduction, and reduces them as torch does."""

    def __init__(self, wrapper: nn.Module) -> None:
        self.nbytes = 0
        wrapper.register_comm_hook(None, self.reduce)

    def reduce(self, state, bucket):  # torch reads annotations here, and wants them as objects
        """The hook."""
        buffer = bucket.buffer()
        self.nbytes += buffer.nbytes
        buffer.div_(RANKS)
        future = distributed.all_reduce(buffer, async_op=True).get_future()
        return future.then(lambda done: done.value()[0])


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Forward, backward and step on fresh noise."""
    optimizer.zero_grad()
    F.cross_entropy(model(torch.randn(BATCH, 3, SIDE, SIDE)), torch.arange(BATCH)).backward()
    optimizer.step()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return fl.optimizer(torch.optim.AdamW, model, lr=1e-4)


def all_trains(model: SmallViT) -> tuple[nn.Module, torch.optim.Optimizer]:
    return DistributedDataParallel(model), adamw(model)


def before_the_wrap(model: SmallViT) -> tuple[nn.Module, torch.optim.Optimizer]:
    fl.freeze(model, all_but=HALF)
    return DistributedDataParallel(model), adamw(model)


def after_the_wrap(model: SmallViT) -> tuple[nn.Module, torch.optim.Optimizer]:
    optimizer = adamw(model)
    freezer = fl.Freezer(DistributedDataParallel(model), optimizer, schedule=UPPER)
    return freezer.model, optimizer


def wrap_all(model: SmallViT) -> tuple[nn.Module, torch.optim.Optimizer]:
    wrapper = DistributedDataParallel(model, find_unused_parameters=True)
    fl.freeze(wrapper, all_but=HALF)
    return wrapper, adamw(model)


SIDES = {
    "all trains": all_trains,
    "half frozen, then wrapped": before_the_wrap,
    "wrapped, then half frozen (fl.Freezer)": after_the_wrap,
    "wrapped with find_unused_parameters, then half frozen": wrap_all,
}


def bytes_reduced(base: SmallViT) -> dict[str, tuple[int, int]]:
    """Side → bytes reduced in a step, and bytes that train."""
    found = {}
    for name, side in SIDES.items():
        model = copy.deepcopy(base)
        wrapper, optimizer = side(model)
        train_step(wrapper, optimizer)
        counter = Counter(wrapper)
        train_step(wrapper, optimizer)
        trains = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        found[name] = (counter.nbytes, trains)
    return found


def stepper(
    wrapper: nn.Module, optimizer: torch.optim.Optimizer, after: Callable[[], object]
) -> Callable[[], float]:
    """A measure of one step; the ranks begin it together."""

    def step() -> float:
        distributed.barrier()
        start = perf_counter()
        train_step(wrapper, optimizer)
        after()
        return perf_counter() - start

    return step


def by_hand(model: SmallViT) -> Callable[[], float]:
    """The same freezing as people write it, wrapped once."""
    model.requires_grad_(False)
    model.patches.eval()
    for part in (*model.blocks[DEPTH // 2 :], model.norm, model.head):
        part.requires_grad_(True)
    for block in model.blocks[: DEPTH // 2]:
        block.eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    return stepper(DistributedDataParallel(model), optimizer, lambda: None)


def with_frostline(model: SmallViT) -> Callable[[], float]:
    """Under a freezer, which is told of each step."""
    optimizer = adamw(model)
    freezer = fl.Freezer(DistributedDataParallel(model), optimizer, schedule=UPPER)
    return stepper(freezer.model, optimizer, freezer.step)


def transitions(base: SmallViT, count: int) -> dict[str, Any]:
    """Milliseconds of a transition, against wrapping anew by hand; collectives of each kind."""
    model, other = copy.deepcopy(base), copy.deepcopy(base)
    optimizer = adamw(model)
    phases = [{"step": at, "train": HALF if at % 2 else ["**"]} for at in range(1, count + 1)]
    schedule = [{"epoch": 0, "train": ["**"]}, *phases]
    freezer = fl.Freezer(DistributedDataParallel(model), optimizer, schedule=schedule)
    calls: dict[str, int] = {}
    names = ("all_gather", "all_gather_object", "broadcast", "all_reduce")
    originals = {name: getattr(distributed, name) for name in names}

    def counted(name: str, *args: Any, **options: Any) -> Any:
        calls[name] = calls.get(name, 0) + 1
        return originals[name](*args, **options)

    freezer_seconds, hand_seconds = [], []
    for _ in range(count):
        train_step(freezer.model, optimizer)
        distributed.barrier()
        for name in names:
            setattr(distributed, name, functools.partial(counted, name))
        start = perf_counter()
        freezer.step()
        freezer_seconds.append(perf_counter() - start)
        for name, original in originals.items():
            setattr(distributed, name, original)
        distributed.barrier()
        start = perf_counter()
        DistributedDataParallel(other)
        hand_seconds.append(perf_counter() - start)
    return {
        "freezer_ms": statistics.median(freezer_seconds) * 1e3,
        "wrap_ms": statistics.median(hand_seconds) * 1e3,
        "transitions": len(freezer.timeline()) - 1,
        "calls": calls,
    }


def on_rank(rank: int, folder: str, rounds: int) -> None:
    """Everything that is measured, on each rank; the first one writes it down."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    torch.manual_seed(0)
    base = SmallViT()
    found: dict[str, Any] = {"bytes": bytes_reduced(base)}
    measures = {
        "by hand": by_hand(copy.deepcopy(base)),
        "again": by_hand(copy.deepcopy(base)),
        "frostline": with_frostline(copy.deepcopy(base)),
    }
    taken = interleave(measures, rounds=rounds, warmup=5)
    found["step_ms"] = {name: seconds * 1e3 for name, seconds in medians(taken).items()}
    found["more"] = {n: median_ratio(taken, n, "by hand") - 1 for n in ("again", "frostline")}
    found["transition"] = transitions(base, 4 if rounds < 50 else 20)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    distributed.barrier()


def report(found: dict[str, Any]) -> None:
    """Print the tables."""
    rows = []
    for name, (reduced, trains) in found["bytes"].items():
        sends_all = name.startswith("wrapped with")
        rows.append(
            [
                name,
                format_bytes(trains),
                format_bytes(reduced),
                "none: this recipe sends zeros" if sends_all else verdict(abs(reduced - trains), 0),
            ]
        )
    table(["model", "trains", "reduced a step", "target: equal"], rows)
    step, more = found["step_ms"], found["more"]
    row = [f"{step['by hand']:.2f}", f"{more['again']:+.2%}", f"{step['frostline']:.2f}"]
    target = f"at most +2 %: {verdict(more['frostline'], 0.02)}"
    table(
        ["by hand, ms a step", "by hand again", "fl.Freezer, ms", "more", "target"],
        [[*row, f"{more['frostline']:+.2%}", target]],
    )
    moved = found["transition"]
    each = {name: count / moved["transitions"] for name, count in moved["calls"].items()}
    said = ", ".join(f"{count:g} {name}" for name, count in each.items())
    table(
        ["a transition, ms", "wrapping anew, ms", "collectives a transition", "target"],
        [
            [
                f"{moved['freezer_ms']:.2f}",
                f"{moved['wrap_ms']:.2f}",
                said,
                f"one: {verdict(sum(each.values()), 1)}",
            ]
        ],
    )


def main() -> None:
    """Start the ranks, and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    rounds = 20 if parser.parse_args().quick else 200
    heading(
        "Freezing under DistributedDataParallel",
        f"A ViT of {DEPTH} blocks, batch {BATCH} on each of {RANKS} processes (gloo, one thread"
        f" each), AdamW; the lower half frozen; {rounds} interleaved rounds.",
    )
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(on_rank, args=(folder, rounds), nprocs=RANKS)
        report(json.loads((Path(folder) / "found.json").read_text()))


if __name__ == "__main__":
    main()
