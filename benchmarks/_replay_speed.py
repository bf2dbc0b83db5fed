"""The tables of epochs: the head alone, the last two blocks, a second run, image files."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _replay_files import FILE_SIDE, FORMAT, HAS_PILLOW, ImageFiles
from _replay_jobs import JOBS, Job, Scale
from _replay_sides import Side, by_hand, replayed, same_losses, suffix_alone, with_new_head
from _report import Seconds, interleave, median_ratio, medians, table, verdict
from torch.utils.data import Dataset

from frostline.units import format_bytes

RAGGED = 5
LAST_TWO_EPOCHS = 6
"""The 1st, 8th and 64th replay are audited, in the second and third epoch: medians need more."""


def head(scale: Scale) -> None:
    """A head alone: later epochs, whole runs, and the first epoch, which records."""
    later, first = [], []
    for job in (JOBS[name] for name in scale.jobs):
        data = job.data(scale.samples)
        runs = [run(job, data, scale, ("load", "skip")) for _ in range(scale.repeats)]
        for way, name in (("load", job.name), ("skip", f"{job.name}, inputs skipped")):
            later.append(_later_row(name, runs, way, target=True))
            first.append(_first_row(name, runs, scale.epochs, way))
    if "vit" in scale.jobs:
        job = JOBS["vit"]
        runs = [run(job, job.data(scale.samples + RAGGED), scale, ("load",))]
        name = f"{job.name}, with a last batch of {RAGGED}"
        later.append(_later_row(name, runs, target=False))
        first.append(_first_row(name, runs, scale.epochs, target=False))
    print(
        "## The head alone\n\nMedians over the epochs after the first. The second epoch is told"
        " apart: there the first replays are audited, that is also computed and compared."
        " 'The limit' is the head on features that were computed by hand beforehand, in the same"
        ' loop: no replay can be faster. Inputs skipped: `inputs="skip"`, by which samples that'
        " nothing needs are not loaded and stacked any more, as `frostline finetune` has it. A last"
        " batch of another size is computed plainly, so that"
        " the bits stay.\n"
    )
    columns = ["model", "way four, ms", "replay, ms", "times faster", "target", "the limit"]
    table([*columns, "second epoch, ms", "losses against way four"], later)
    print(
        f"Whole runs of {scale.epochs} epochs, recording included; and what the first, which"
        " records, takes more than a plain epoch.\n"
    )
    columns = ["model", "way four, s", "replay, s", "times faster", "target", "first epoch, more"]
    table([*columns, "target"], first)


def last_two(scale: Scale) -> None:
    """The last two blocks, against the live part alone on features computed by hand."""
    rows = []
    for job in (JOBS[name] for name in scale.jobs):
        base, data = job.fresh(), job.data(scale.samples)
        sides = {
            "hand": by_hand(base, job.last_two, data),
            "replay": replayed(base, job.last_two, data),
            "limit": suffix_alone(base, job.last_two, data),
        }
        taken = _later(_epochs(sides, LAST_TWO_EPOCHS))
        middle = medians(taken)
        speed = median_ratio(taken, "limit", "replay")
        rows.append(
            [
                job.name,
                *(f"{middle[name] * 1e3:.1f}" for name in ("hand", "limit", "replay")),
                f"{median_ratio(taken, 'hand', 'replay'):.2f}",
                f"{speed:.3f}",
                f"at least 0.95: {verdict(speed, 0.95, at_least=True)}",
                same_losses(sides["hand"], sides["replay"]),
            ]
        )
    print(
        "## The last two blocks\n\nMedians over the epochs after the first. 'The limit' trains the"
        " live part alone, on features that were computed by hand beforehand.\n"
    )
    columns = ["model", "way four, ms", "limit, ms", "replay, ms", "times faster"]
    table([*columns, "of the limit's speed", "target", "losses against way four"], rows)


def second_run(scale: Scale) -> None:
    """The first epoch of a run that finds the records of an earlier one in a folder."""
    rows = []
    for job in (JOBS[name] for name in scale.jobs):
        base, data = job.fresh(), job.data(scale.samples)
        taken: Seconds = {"hand": [], "replay": []}
        alike = set()
        with tempfile.TemporaryDirectory() as folder:
            earlier = replayed(base, job.head, data, store=folder)
            for number in range(2):
                earlier.epoch(number)
            for seed in range(max(2, scale.repeats)):
                other = with_new_head(base, job.head, seed=seed)
                sides = {
                    "hand": by_hand(other, job.head, data),
                    "replay": replayed(other, job.head, data, store=folder),
                }
                for name in sides if seed % 2 else reversed(sides):
                    taken[name].append(sides[name].epoch(seed))
                alike.add(same_losses(sides["hand"], sides["replay"]))
        middle = medians(taken)
        faster = median_ratio(taken, "hand", "replay")
        rows.append(
            [
                job.name,
                *(f"{middle[name] * 1e3:.1f}" for name in ("hand", "replay")),
                f"{faster:.1f}",
                f"at least 50: {verdict(faster, 50, at_least=True)}",
                "; ".join(sorted(alike)),
            ]
        )
    print(
        "## A second run\n\nThe first epoch with another head, in a folder that an earlier run has"
        " filled (files in the page cache), against an epoch of way four.\n"
    )
    columns = ["model", "way four, ms", "first epoch, ms", "times faster"]
    table([*columns, "target", "losses against way four"], rows)


def files(scale: Scale) -> None:
    """Image files, end to end: what is not needed any more is not decoded either."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = ImageFiles(Path(folder), scale.samples)
        size = sum(path.stat().st_size for path in data.paths)
        for job in (JOBS[name] for name in scale.jobs if name in ("vit", "resnet")):
            runs = [run(job, data, scale, ("skip",)) for _ in range(max(1, scale.repeats // 2))]
            rows.append(_later_row(job.name, runs, "skip", target=HAS_PILLOW))
    kind = (
        "JPEG, decoded by Pillow" if HAS_PILLOW else "PPM: Pillow is missing, so no JPEG, no target"
    )
    print(
        f"## Image files\n\n{scale.samples} files ({kind}) of {FILE_SIDE} pixels,"
        f" {format_bytes(size)} of .{FORMAT}, read, decoded and made smaller to 48 pixels in the"
        ' process itself; the head alone trains, `inputs="skip"`. Medians over the epochs after'
        " the first. 'The limit' has its features in memory.\n"
    )
    columns = ["model", "way four, ms", "replay, ms", "times faster", "target", "the limit"]
    table([*columns, "second epoch, ms", "losses against way four"], rows)


Run = tuple[Seconds, dict[str, str]]
"""The epochs of each side; and of each replayed side, whether its losses are those by hand."""


def run(job: Job, data: Dataset[Any], scale: Scale, inputs: Sequence[str]) -> Run:
    """One run of the head from fresh copies, all sides in turns: replay in each of these ways."""
    base = job.fresh()
    sides = {
        "hand": by_hand(base, job.head, data),
        **{way: replayed(base, job.head, data, inputs=way) for way in inputs},
        "limit": suffix_alone(base, job.head, data),
    }
    taken = _epochs(sides, scale.epochs)
    return taken, {way: same_losses(sides["hand"], sides[way]) for way in inputs}


def _epochs(sides: dict[str, Side], count: int) -> Seconds:
    numbers = {name: iter(range(count)) for name in sides}
    measures = {name: lambda name=name: sides[name].epoch(next(numbers[name])) for name in sides}
    return interleave(measures, rounds=count, warmup=0)


def _later(taken: Seconds) -> Seconds:
    return {name: seconds[1:] for name, seconds in taken.items()}


def _joined(runs: list[Run]) -> Seconds:
    """The later epochs of several runs."""
    return {name: [s for taken, _ in runs for s in taken[name][1:]] for name in runs[0][0]}


def _later_row(name: str, runs: list[Run], way: str = "load", *, target: bool) -> list[str]:
    taken = _joined(runs)
    middle = medians(taken)
    faster = median_ratio(taken, "hand", way)
    second = statistics.median(run[way][1] for run, _ in runs)
    return [
        name,
        f"{middle['hand'] * 1e3:.1f}",
        f"{middle[way] * 1e3:.1f}",
        f"{faster:.1f}",
        f"at least 100: {verdict(faster, 100, at_least=True)}" if target else "",
        f"{median_ratio(taken, 'hand', 'limit'):.1f} times",
        f"{second * 1e3:.1f}",
        "; ".join(sorted({alike[way] for _, alike in runs})),
    ]


def _first_row(
    name: str, runs: list[Run], epochs: int, way: str = "load", *, target: bool = True
) -> list[str]:
    whole = [{side: sum(seconds) for side, seconds in taken.items()} for taken, _ in runs]
    faster = statistics.median(sums["hand"] / sums[way] for sums in whole)
    # Against the median of plain epochs: the very first is often slow for reasons of its own.
    more = statistics.median(
        taken[way][0] / statistics.median(taken["hand"]) - 1 for taken, _ in runs
    )
    # Ten epochs are what the target is set for.
    held = target and epochs >= 10
    return [
        name,
        *(f"{statistics.median(sums[side] for sums in whole):.2f}" for side in ("hand", way)),
        f"{faster:.2f}",
        f"at least 8: {verdict(faster, 8, at_least=True)}" if held else "",
        f"{more:+.1%}",
        f"at most +5 %: {verdict(more, 0.05)}" if target else "",
    ]
