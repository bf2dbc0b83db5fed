"""What the runs of benchmarks/schedules.py amount to: tables, plain statements, plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from _report import table
from _schedule_runs import AGAIN, FULL, WAYS

Run = dict[str, Any]

AIMED_AT = ("alpha", "autofreeze", "plasticity")
_SPEED = 2.0
# Less than this is no gain: two equal trainings differ by as much.
_GAIN = 0.05


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number that was measured once a seed."""

    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The median."""
        return statistics.median(self.values)

    def show(self, form: str) -> str:
        """Median, and the range in parentheses."""
        low, high = min(self.values), max(self.values)
        return f"{self.middle:{form}} ({low:{form}} to {high:{form}})"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One way on one task.

    Attributes:
        way: its label.
        time: relative to full training with the same seed.
        time_replayed: the same, with replay; None where there is nothing to replay by design.
        accuracy: on the test samples.
        less: accuracy less that of full training with the same seed.
        frozen: share of the parameters, averaged over the steps.
        replayed: share of the steps.
        same_bits: seeds for which replay changed no bit of the weights, of how many.
        keeps: whether the median accuracy is within the range of full training's seeds or above.
    """

    way: str
    time: Spread
    time_replayed: Spread | None
    accuracy: Spread
    less: Spread
    frozen: float
    replayed: float
    same_bits: tuple[int, int]
    keeps: bool

    @property
    def best(self) -> float:
        """The median time, with replay or without, whichever is less."""
        return min(t.middle for t in (self.time, self.time_replayed) if t is not None)

    @property
    def is_aim(self) -> bool:
        """Whether the aim is about this way."""
        return self.way.partition(" ")[0] in AIMED_AT

    @property
    def reaches(self) -> bool:
        """Twice as fast with replay, and as accurate."""
        return self.keeps and self.time_replayed is not None and self._fast(self.time_replayed)

    @property
    def verdict(self) -> str:
        """In a few words."""
        replayed = self.time_replayed
        if replayed is None:
            return ""
        with_replay, without = self._fast(replayed), self._fast(self.time)
        speed = "2x" if with_replay else "2x only without replay" if without else "less than 2x"
        return f"{speed}, {'as accurate' if self.keeps else 'less accurate'}"

    @staticmethod
    def _fast(time: Spread) -> bool:
        return time.middle <= 1 / _SPEED


def results(runs: Sequence[Run]) -> list[Result]:
    """The ways of one task that have runs, in the order of the tables."""
    by: dict[tuple[str, bool], dict[int, Run]] = {}
    for run in runs:
        by.setdefault((run["way"], run["replay"]), {})[run["seed"]] = run
    base = {
        seed: statistics.mean(
            by[name, False][seed]["cpu_seconds"]
            for name in (FULL, AGAIN)
            if seed in by.get((name, False), {})
        )
        for seed in by.get((FULL, False), {})
    }
    full = {seed: run["accuracy"] for seed, run in by.get((FULL, False), {}).items()}
    found = []
    for way in WAYS:
        plain = {s: r for s, r in by.get((way.label, False), {}).items() if s in base}
        replayed = {s: r for s, r in by.get((way.label, True), {}).items() if s in plain}
        if not plain:
            continue
        accuracy = Spread(values=tuple(run["accuracy"] for run in plain.values()))
        same = [run["bits"] == plain[seed]["bits"] for seed, run in replayed.items()]
        found.append(
            Result(
                way=way.label,
                time=_relative(plain, base),
                time_replayed=_relative(replayed, base) if replayed else None,
                accuracy=accuracy,
                less=Spread(values=tuple(run["accuracy"] - full[s] for s, run in plain.items())),
                frozen=statistics.mean(map(_frozen_over_time, plain.values())),
                replayed=_mean([run["replayed"] / run["steps"] for run in replayed.values()]),
                same_bits=(sum(same), len(same)),
                keeps=accuracy.middle >= min(full.values()),
            )
        )
    return found


def print_table(found: Sequence[Result]) -> None:
    """One row a way."""
    table(
        ["way", "time", "with replay", "accuracy", "less full", "frozen", "replayed", "verdict"],
        [
            [
                result.way,
                result.time.show(".2f"),
                result.time_replayed.show(".2f") if result.time_replayed else "",
                result.accuracy.show(".3f"),
                "" if result.way in (FULL, AGAIN) else result.less.show("+.3f"),
                f"{result.frozen:.0%}",
                f"{result.replayed:.0%}",
                result.verdict,
            ]
            for result in found
        ],
    )


def print_statements(found: Sequence[Result]) -> None:
    """The aim, and what does not help, in sentences."""
    schedules = [r for r in found if r.time_replayed is not None and not r.way.startswith("way")]
    aimed = [result for result in schedules if result.is_aim]
    if not aimed:
        return
    reached = [result for result in aimed if result.reaches]
    best = min(aimed, key=lambda r: (not r.keeps, r.time_replayed.middle if r.time_replayed else 1))
    assert best.time_replayed is not None
    print(
        "**The aim** (AutoFreeze, Alpha or Plasticity with replay at least twice as fast as full"
        " training, as accurate): "
        + (f"met by {_names(reached)}. " if reached else "missed. ")
        + f"Of the three, {best.way} is the fastest of "
        + ("those that keep the accuracy: " if best.keeps else "all, none keeps the accuracy: ")
        + f"{1 / best.time_replayed.middle:.1f} times as fast with replay,"
        f" {1 / best.time.middle:.1f} without, {best.less.middle * 100:+.1f} points.\n"
    )
    lists: tuple[tuple[str, Callable[[Result], bool]], ...] = (
        ("Other schedules that reach it", lambda r: r.reaches and not r.is_aim),
        (
            f"Replay helps, by {_GAIN:.0%} of full training's time and more",
            lambda r: _gain(r) >= _GAIN,
        ),
        ("Replay harms, by as much", lambda r: _gain(r) <= -_GAIN),
        ("Freezing alone saves a tenth of the time at most", lambda r: r.time.middle >= 0.9),
        ("Less accurate than the worst seed of full training", lambda r: not r.keeps),
        ("Nothing froze", lambda r: r.frozen == 0),
    )
    quickest = min((r for r in found if r.keeps and r.way != AGAIN), key=lambda r: r.best)
    print(f"- The least time at full accuracy: {quickest.way}, {quickest.best:.2f}.")
    for words, holds in lists:
        print(f"- {words}: {_names([r for r in schedules if holds(r)]) or 'none'}.")
    same, pairs = (sum(r.same_bits[at] for r in found) for at in (0, 1))
    odd = [r for r in found if r.same_bits[0] < r.same_bits[1]]
    print(
        f"- Runs with replay that ended with the same bits as those without: {same} of {pairs}"
        + (f"; not: {_names(odd)}.\n" if odd else ".\n")
    )


def plot(name: str, runs: Sequence[Run], found: Sequence[Result], folder: Path) -> Path | None:
    """A line a way: its time and accuracy, and what was frozen when; None without matplotlib."""
    try:
        matplotlib = import_module("matplotlib")
    except ImportError:
        return None
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": name, "font.size": 8})
    pyplot = import_module("matplotlib.pyplot")
    figure, (times, frozen) = pyplot.subplots(
        1, 2, figsize=(11, 0.6 + 0.24 * len(found)), sharey=True, layout="constrained"
    )
    for line, result in enumerate(found):
        colour = "C0" if result.keeps else "C3"
        ends = [t.middle for t in (result.time, result.time_replayed) if t is not None]
        times.plot(ends, [line] * len(ends), color=colour, linewidth=0.8)
        times.plot(ends[:1], [line], "o", color=colour, markerfacecolor="white")
        times.plot(ends[1:], [line] * len(ends[1:]), "o", color=colour)
        first = [r for r in runs if (r["way"], r["seed"], r["replay"]) == (result.way, 0, False)]
        for run in first:
            stops = [step for step, _ in run["frozen"][1:]] + [run["steps"]]
            for (start, share), stop in zip(run["frozen"], stops, strict=True):
                frozen.barh(line, stop - start, left=start, color="C0", alpha=share, linewidth=0)
    for at in (1 / _SPEED, 1):
        times.axvline(at, color="0.8", linewidth=0.8, zorder=0)
    times.set(
        xlabel="time, of full training's; filled: with replay; red: less accurate", title=name
    )
    times.set_xlim(left=0)
    times.set_yticks(range(len(found)), [result.way for result in found])
    times.invert_yaxis()
    frozen.set(xlabel="step; the darker, the more parameters are frozen (seed 0)")
    path = folder / f"schedules-{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _relative(runs: dict[int, Run], base: dict[int, float]) -> Spread:
    return Spread(values=tuple(run["cpu_seconds"] / base[s] for s, run in runs.items()))


def _frozen_over_time(run: Run) -> float:
    ends = [step for step, _ in run["frozen"][1:]] + [run["steps"]]
    spans = zip(run["frozen"], ends, strict=True)
    frozen: float = sum(share * (end - start) for (start, share), end in spans)
    return frozen / float(run["steps"])


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values) if values else 0.0


def _gain(result: Result) -> float:
    """How much less of full training's time with replay than without."""
    assert result.time_replayed is not None
    return result.time.middle - result.time_replayed.middle


def _names(found: Sequence[Result]) -> str:
    return ", ".join(result.way for result in found)
