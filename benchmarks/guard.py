"""What fl.guard adds to a training step, and how fast a full check of the content is.

Targets: at most 1 % of a step by default, on a small ViT; a full check within twice the time that
reading the frozen bytes takes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from time import perf_counter

import torch
import xxhash
from _report import heading, interleave, median_ratio, medians, table, verdict
from step_cost import BATCH, DEPTH, WIDTH, SmallViT, stepper
from torch import Tensor

import frostline as fl
from frostline.units import format_bytes

ROUNDS, CHECK_ROUNDS, WARMUP = 150, 40, 20


def frozen_vit(base: SmallViT, trained: int) -> tuple[SmallViT, torch.optim.Optimizer]:
    """A copy of which the head and the last blocks train."""
    model = copy.deepcopy(base).train()
    fl.freeze(model, all_but=["head", fl.last(trained, "blocks")] if trained else "head")
    return model, fl.optimizer(torch.optim.AdamW, model, lr=1e-4)


def bare(base: SmallViT, trained: int) -> Callable[[], float]:
    """The loop without a guard."""
    return stepper(*frozen_vit(base, trained))


class Guarded:
    """The same loop under a guard with its defaults, and the seconds that the guard took of it."""

    def __init__(self, base: SmallViT, trained: int) -> None:
        model, optimizer = frozen_vit(base, trained)
        self.guard = fl.guard(model, optimizer)
        self.guard.start()
        self._step = stepper(model, optimizer)
        self.own_seconds: list[float] = []
        self._ended = perf_counter()

    def __call__(self) -> float:
        """One whole step, in seconds."""
        # The guard spends a share of the time that passes; the turns of the others are none of it.
        self.guard._step_ended_at += perf_counter() - self._ended
        before = self.guard.report.seconds
        seconds = self._step()
        self.own_seconds.append(self.guard.report.seconds - before)
        self._ended = perf_counter()
        return seconds


def step_row(base: SmallViT, label: str, trained: int) -> list[str]:
    """Bare, bare again and guarded, in turns."""
    loop = Guarded(base, trained)
    taken = interleave(
        {"bare": bare(base, trained), "again": bare(base, trained), "guard": loop},
        rounds=ROUNDS,
        warmup=WARMUP,
    )
    loop.guard.stop()
    report = loop.guard.report
    middle = medians(taken)
    more = median_ratio(taken, "guard", "bare") - 1
    own = sum(loop.own_seconds[WARMUP:]) / sum(taken["guard"])
    once = report.seconds - sum(loop.own_seconds[1:])
    frozen = sum(p.nbytes for p in base.parameters()) - sum(
        p.nbytes for block in list(base.blocks)[DEPTH - trained :] for p in block.parameters()
    )
    return [
        label,
        f"{middle['bare'] * 1e3:.3f}",
        f"{median_ratio(taken, 'again', 'bare') - 1:+.2%}",
        f"{middle['guard'] * 1e3:.3f}",
        f"{more:+.2%}",
        f"{own:.2%}",
        f"{once * 1e3:.0f}",
        f"{report.bytes_read / frozen:.0f}",
        f"at most 1 %: {verdict(more, 0.01)}",
    ]


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """A measure of one call."""

    def measure() -> float:
        start = perf_counter()
        call()
        return perf_counter() - start

    return measure


def check_row(model: torch.nn.Module, label: str) -> list[str]:
    """One comparison of all content, beside the bare ways to read the same bytes."""
    fl.freeze(model, "**", everything=True)
    tensors = [p.detach() for p in model.parameters()]
    copies = [t.clone() for t in tensors]
    guard = fl.guard(model, every=1_000_000)
    guard.start()
    guard.step()  # the first step is compared at every moment; what is measured is one look
    keeper = guard._keeper

    def look() -> None:
        guard._timeline.cut("the benchmark")
        assert keeper.look(list(keeper.watched.values()), step=1) == []

    def hash_bare() -> None:
        for tensor in tensors:
            xxhash.xxh3_128(tensor.view(torch.uint8).numpy()).intdigest()

    def equal(pairs: list[tuple[Tensor, Tensor]]) -> None:
        assert all(torch.equal(one, other) for one, other in pairs)

    taken = interleave(
        {
            "xxh3": timed(hash_bare),
            "equal": timed(lambda: equal(list(zip(tensors, copies, strict=True)))),
            "guard": timed(look),
        },
        rounds=CHECK_ROUNDS,
    )
    guard.stop()
    total = sum(t.nbytes for t in tensors)
    middle = medians(taken)
    ratio = median_ratio(taken, "guard", "xxh3")
    return [
        f"{label}, {len(tensors)} tensors, {format_bytes(total)}",
        *(f"{total / middle[name] / 1e9:.1f}" for name in ("xxh3", "equal", "guard")),
        f"{ratio:.2f}",
        f"at most 2: {verdict(ratio, 2.0)}",
    ]


def main() -> None:
    """Print the cost of a step and the rate of a full check."""
    heading(
        "The guard",
        f"A ViT of {DEPTH} blocks, width {WIDTH}, batch {BATCH}, AdamW; {ROUNDS} interleaved rounds"
        " of forward, backward and optimizer step, frozen by Frostline on all sides. 'Again' is"
        " the bare loop in a second copy: how much two equal things differ here. 'By its own"
        " clock' is the time spent in the guard as a share of the steps', which is steadier than"
        " the difference of two loops; the target is held against that difference all the same."
        " 'Once' is what start, first step and end take together. 'Read' counts how often all"
        " frozen bytes were compared.",
    )
    torch.manual_seed(0)
    base = SmallViT()
    columns = [
        "trained",
        "bare, ms",
        "again",
        "guarded, ms",
        "more a step",
        "by its own clock",
        "once, ms",
    ]
    rows = [step_row(base, "head alone", 0), step_row(base, "last block and head", 1)]
    table([*columns, "read", "target"], rows)
    print("A full check beside bare reads of the same bytes, in GB/s, and the time against xxh3.\n")
    wide = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(16)))
    rows = [check_row(copy.deepcopy(base), "the ViT"), check_row(wide, "16 wide layers")]
    table(["frozen", "xxh3_128", "torch.equal", "full check", "time, of xxh3's", "target"], rows)


if __name__ == "__main__":
    main()
