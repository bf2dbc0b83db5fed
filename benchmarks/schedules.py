"""When to freeze what: time and accuracy of every schedule against full training, on two tasks.

Aim: AutoFreeze, Alpha or Plasticity with replay at least twice as fast as full training, with
accuracy within the seeds' spread.

Each finished run is kept in a file of its own, so a call that was cut short goes on where it was,
and two calls may share the work (``--only digits`` and ``--only text``).
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
from contextlib import redirect_stdout
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import sklearn
import torch
from _report import heading
from _schedule_report import plot, print_statements, print_table, results
from _schedule_runs import AGAIN, FULL, HEAD, WAYS, Way, run
from _schedule_tasks import BATCH, TASKS, Task

import frostline as fl
from frostline.files import replace_atomically

EPOCHS = {"digits": 20, "text": 20}
ROOT = Path(__file__).parents[1]
STATE = ROOT / "runs" / "benchmark-schedules"
ABOUT = (
    "Each schedule beside full training, with replay and without. Within a seed all ways have the"
    " same new head, order of samples and data; the ways take turns in an order drawn anew for each"
    " seed. Columns: median, and in parentheses the range over the seeds. Time: processor time of"
    " one thread, which other work on the machine disturbs less than the clock on the wall, for"
    " training with all that belongs to it (transitions, proofs, recording, loading), relative to"
    " the mean of two full trainings with the same seed; 'again' is the second of them and shows"
    " how much two equal things differ here. Less full: accuracy less that of full training with"
    " the same seed. Frozen: share of the parameters, averaged over the steps. Replayed: share of"
    " the steps. Accuracy is on 225 scans or 960 snippets. As accurate: the median is not below the"
    " worst seed of full training. Options are the defaults unless named."
)


def main() -> None:
    """Do what is left of the runs, then write the table and the plots."""
    given = _arguments()
    torch.set_num_threads(1)
    state = STATE / "quick" if given.quick else STATE
    out = given.out or (state if given.quick else ROOT / "benchmarks" / "results")
    ways = [way for way in WAYS if way.name in given.ways or way.label in (FULL, AGAIN)]
    for name in given.tasks:
        task = _task(name, quick=given.quick)
        _warm_up(task)
        for seed in range(given.seeds):
            _train(task, ways, seed, state)
    # Of tasks that this call left out, what other calls did is told too.
    _write({name: _known(name, state, quick=given.quick) for name in TASKS}, out)


def _arguments() -> argparse.Namespace:
    names = list(dict.fromkeys(way.name for way in WAYS))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs: a smoke test")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=[*TASKS, *names], help="tasks, ways or both"
    )
    parser.add_argument("--seeds", type=int, default=None, help="how many (5)")
    parser.add_argument("--out", type=Path, default=None, help="folder for table and plots")
    given = parser.parse_args()
    given.seeds = given.seeds or (1 if given.quick else 5)
    given.tasks = [name for name in TASKS if name in given.only] or list(TASKS)
    given.ways = [name for name in names if name in given.only] or names
    return given


def _task(name: str, *, quick: bool) -> Task:
    return TASKS[name](2 if quick else EPOCHS[name], STATE)


def _warm_up(task: Task) -> None:
    """A thread's first steps are slow, whatever they are."""
    run(task, WAYS[0], replay=False, seed=0, epochs=1)


def _train(task: Task, ways: list[Way], seed: int, state: Path) -> None:
    """The runs of one seed that are not there yet."""
    todo = [(way, replay) for way in ways for replay in (False, True)]
    random.Random(seed).shuffle(todo)
    for way, replay in todo:
        path = state / f"{task.name}-{way.slug}-{'replay' if replay else 'plain'}-{seed}.json"
        if (replay and way.label in (FULL, AGAIN)) or _read(path, _setting(task.epochs)):
            continue
        done = run(task, way, replay=replay, seed=seed)
        _save(path, done | {"setting": _setting(task.epochs)})
        print(
            f"{task.name}, seed {seed}, {way.label}{' with replay' if replay else ''}:"
            f" {done['cpu_seconds']:.2f} s, {done['accuracy']:.3f}",
            file=sys.stderr,
        )


def _setting(epochs: int) -> dict[str, Any]:
    """What must be alike for times to be compared."""
    return {
        "epochs": epochs,
        "batch": BATCH,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "frostline": fl.__version__,
        "machine": f"{platform.node()} {platform.machine()}",
    }


def _save(path: Path, done: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_atomically(path, lambda temporary: temporary.write_text(json.dumps(done)))


def _read(path: Path, setting: dict[str, Any]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    done: dict[str, Any] = json.loads(path.read_text())
    return done if done.get("setting") == setting else None


def _known(name: str, state: Path, *, quick: bool) -> list[dict[str, Any]]:
    setting = _setting(2 if quick else EPOCHS[name])
    found = [_read(path, setting) for path in sorted(state.glob(f"{name}-*.json"))]
    return [done for done in found if done is not None]


def _write(runs: dict[str, list[dict[str, Any]]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    page = StringIO()
    with redirect_stdout(page):
        heading("Schedules", ABOUT)
        print(
            f"{datetime.now(timezone.utc):%Y-%m-%d}; frostline {fl.__version__},"
            f" scikit-learn {sklearn.__version__}; batches of {BATCH}, AdamW at a constant rate.\n"
        )
        for name, done in runs.items():
            if found := results(done):
                seeds = len({run["seed"] for run in done})
                print(
                    f"## {name}\n\n{done[0]['what']}. {done[0]['steps']} steps; seeds: {seeds}."
                    f" A step takes {_step(done, FULL)} in full training, and with the head alone"
                    f" {_step(done, HEAD)}, with replay {_step(done, HEAD, replay=True)}.\n"
                )
                print_table(found)
                print_statements(found)
                if (path := plot(name, done, found, out)) is not None:
                    print(f"![accuracy over time, and what was frozen when]({path.name})\n")
    (out / "schedules.md").write_text(page.getvalue().rstrip() + "\n")
    print(page.getvalue().rstrip())


def _step(runs: list[dict[str, Any]], way: str, *, replay: bool = False) -> str:
    """The median time of a step, recording and setting up shared out among all."""
    wanted = [r for r in runs if r["way"].startswith(way) and r["replay"] is replay]
    steps = [run["cpu_seconds"] / run["steps"] for run in wanted]
    return f"{median(steps) * 1e3:.1f} ms" if steps else "(not measured)"


if __name__ == "__main__":
    main()
