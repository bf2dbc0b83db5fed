"""What every benchmark shares: rounds that interleave both sides, the machine, the table."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Seconds = dict[str, list[float]]
"""What was measured → one duration a round."""


def interleave(
    measures: Mapping[str, Callable[[], float]], *, rounds: int, warmup: int = 2
) -> Seconds:
    """Call each measure once a round, so that a slow moment of the machine hits all alike.

    A measure returns the seconds that count, which leaves its own setting up out of them. The
    order turns round every other time: going second is worth something to a warm cache.
    """
    taken: Seconds = {name: [] for name in measures}
    for number in range(warmup + rounds):
        names = list(measures) if number % 2 == 0 else list(reversed(measures))
        for name in names:
            seconds = measures[name]()
            if number >= warmup:
                taken[name].append(seconds)
    return taken


def median_ratio(taken: Seconds, name: str, base: str) -> float:
    """The median over the rounds of ``name`` / ``base``, both from the same round."""
    pairs = zip(taken[name], taken[base], strict=True)
    return statistics.median(value / other for value, other in pairs)


def medians(taken: Seconds) -> dict[str, float]:
    """The median of each measure, in seconds."""
    return {name: statistics.median(values) for name, values in taken.items()}


def heading(title: str, what: str) -> None:
    """Print the title, what was measured, and the machine that it was measured on."""
    import torch

    print(f"# {title}\n\n{what}\n")
    print(
        f"Machine: {_cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads;"
        f" {platform.system()} {platform.machine()}; Python {platform.python_version()},"
        f" torch {torch.__version__}.\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table that also reads well in a terminal."""
    widths = [max(len(row[at]) for row in [columns, *rows]) for at in range(len(columns))]
    rule = ["-" * width for width in widths]
    for row in [columns, rule, *rows]:
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")
    print()


def verdict(value: float, limit: float, *, at_least: bool = False) -> str:
    """``met`` or ``missed`` for a target that the value must not pass (or must reach)."""
    return "met" if (value >= limit if at_least else value <= limit) else "missed"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown CPU"
