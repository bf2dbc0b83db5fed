"""fl.fingerprint beside bare xxh3_128 on the same bytes, and the memory that a proof takes.

Targets: at least 80 % of bare xxh3_128, no copy of the weights held.
"""

from __future__ import annotations

import resource
import sys
import tracemalloc
from collections.abc import Callable
from time import perf_counter

import torch
import xxhash
from _report import heading, interleave, median_ratio, medians, table, verdict
from torch import Tensor, nn

import frostline as fl
from frostline.units import format_bytes


def weights() -> nn.Module:
    """A ViT-shaped pile of weights: 12 blocks of 768, 122 tensors, 324 MiB."""
    layers = [
        nn.ModuleDict(
            {
                "norm": nn.LayerNorm(768),
                "attention": nn.Linear(768, 3 * 768),
                "project": nn.Linear(768, 768),
                "up": nn.Linear(768, 4 * 768),
                "down": nn.Linear(4 * 768, 768),
            }
        )
        for _ in range(12)
    ]
    return nn.ModuleDict({"layers": nn.ModuleList(layers), "head": nn.Linear(768, 10)})


def hash_bare(tensors: list[Tensor]) -> None:
    """xxh3_128 over each tensor's bytes, with nothing else."""
    for tensor in tensors:
        xxhash.xxh3_128(tensor.detach().view(torch.uint8).numpy()).hexdigest()


def hash_with_frostline(tensors: list[Tensor]) -> None:
    """The same through fl.fingerprint: dtype, shape and content."""
    for tensor in tensors:
        fl.fingerprint(tensor)


def timed(hash_all: Callable[[list[Tensor]], None], tensors: list[Tensor]) -> float:
    """Seconds for one pass over all tensors."""
    start = perf_counter()
    hash_all(tensors)
    return perf_counter() - start


def peak_resident_bytes() -> int:
    """The most memory that this process has held so far."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def piles() -> dict[str, list[Tensor]]:
    """The same bytes as tensors of three dtypes."""
    parameters = [parameter.detach() for parameter in weights().parameters()]
    return {
        str(dtype).removeprefix("torch."): [parameter.view(dtype) for parameter in parameters]
        for dtype in (torch.float32, torch.bfloat16, torch.int8)
    }


def compare(name: str, tensors: list[Tensor]) -> list[str]:
    """One row: both sides' speed on these tensors, and their ratio."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    taken = interleave(
        {
            "bare": lambda: timed(hash_bare, tensors),
            "fl": lambda: timed(hash_with_frostline, tensors),
        },
        rounds=15,
    )
    middle = medians(taken)
    share = 1 / median_ratio(taken, "fl", "bare")
    return [
        f"{name}, {total >> 20} MiB",
        f"{total / middle['bare'] / 1e9:.1f}",
        f"{total / middle['fl'] / 1e9:.1f}",
        f"{share:.0%}",
        f"at least 80 %: {verdict(share, 0.8, at_least=True)}",
    ]


def main() -> None:
    """Print speed for four piles of tensors, then what a proof adds to the process's memory."""
    heading(
        "Fingerprints",
        "Bare is `xxhash.xxh3_128` on each tensor's bytes. Both sides take the same tensors in"
        " turns; medians, and the median of the ratios of each round. A freeze copies small tensors"
        " within a budget of 64 MiB and no others.",
    )
    memory = _memory()  # first: the process's peak only ever grows
    rows = [compare(name, tensors) for name, tensors in piles().items()]
    small = [torch.randn(256) for _ in range(20_000)]
    rows.append(compare("20,000 tensors of 1 KiB, where the call itself is the cost", small))
    table(["weights", "bare, GB/s", "fl.fingerprint, GB/s", "of bare", "target"], rows)
    table(["memory", "Python heap, peak", "process, growth of the peak"], memory)


def _memory() -> list[list[str]]:
    model = weights()
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    tensors = list(model.parameters())
    fl.fingerprint(tensors[0])  # what loads late is not the proof's memory

    def grown(call: Callable[[], object]) -> list[str]:
        before = peak_resident_bytes()
        tracemalloc.start()
        call()
        heap = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return [format_bytes(heap), format_bytes(peak_resident_bytes() - before)]

    rows = [[f"fl.fingerprint of {total >> 20} MiB", *grown(lambda: hash_with_frostline(tensors))]]
    kept: list[fl.Frozen] = []
    rows.append(["fl.freeze (kept)", *grown(lambda: kept.append(fl.freeze(model, all_but="head")))])
    rows.append(["frozen.verify()", *grown(lambda: kept[0].verify())])
    return rows


if __name__ == "__main__":
    main()
