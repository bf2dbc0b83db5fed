"""How long a step takes, compared fairly on a machine that is never quiet."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles

import torch

from frostline.collector import collector_paused


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The distribution of one step's duration.

    Attributes:
        median_seconds: half of the repeats took longer. Robust against the few that the
            operating system interrupts, which a mean is not.
        low_seconds: the first quartile.
        high_seconds: the third quartile.
        repeats: steps that were timed.
    """

    median_seconds: float
    low_seconds: float
    high_seconds: float
    repeats: int

    def overlaps(self, other: StepTime) -> bool:
        """Whether the middle halves overlap: then a difference is within the noise.

        >>> slow = StepTime(median_seconds=3, low_seconds=2, high_seconds=4, repeats=9)
        >>> slow.overlaps(StepTime(median_seconds=1, low_seconds=1, high_seconds=2, repeats=9))
        True
        """
        return self.low_seconds <= other.high_seconds and other.low_seconds <= self.high_seconds


def step_times(
    steps: Mapping[str, Callable[[], object]],
    *,
    warmup: int = 5,
    repeats: int = 30,
    patience_seconds: float = math.inf,
) -> dict[str, StepTime]:
    """Time several steps against each other.

    The steps take turns, one call each a round, so that a busy moment of the machine or a rise in
    its temperature falls on all alike; each round begins with another of them. The garbage
    collector is off meanwhile, and work queued on an accelerator is waited for.

    Args:
        steps: name → a function that does one whole step.
        warmup: rounds that are not timed; the first calls allocate and choose kernels.
        repeats: rounds that are timed, at least 1.
        patience_seconds: after this time no further round is begun, once three were timed.

    >>> times = step_times({"short": lambda: None, "long": lambda: sum(range(10_000))})
    >>> times["short"].median_seconds < times["long"].median_seconds
    True
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    gc.collect()
    deadline = time.perf_counter() + patience_seconds
    with collector_paused():
        for round_number in range(warmup + repeats):
            if round_number >= warmup + 3 and time.perf_counter() >= deadline:
                break
            for name in order:
                taken = _time(steps[name])
                if round_number >= warmup:
                    seconds[name].append(taken)
            order = order[1:] + order[:1]
    return {name: _summary(taken) for name, taken in seconds.items()}


def _time(step: Callable[[], object]) -> float:
    _finish_queued_work()
    start = time.perf_counter()
    step()
    _finish_queued_work()
    return time.perf_counter() - start


def _finish_queued_work() -> None:
    # A CUDA context that nothing has used yet has nothing queued, and takes seconds to create.
    unused_cuda = torch.cuda.is_available() and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if torch.accelerator.is_available() and not unused_cuda:
        torch.accelerator.synchronize()


def _summary(seconds: list[float]) -> StepTime:
    enough = seconds if len(seconds) > 1 else seconds * 2  # quantiles asks for two
    low, median, high = quantiles(enough, n=4, method="inclusive")
    return StepTime(median_seconds=median, low_seconds=low, high_seconds=high, repeats=len(seconds))
