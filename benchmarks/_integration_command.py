"""``frostline finetune`` against a loop with fl.replay that was written by hand, as processes.

Both train the same model on the same data, batch size and epochs, and score the same held-out
samples after each; both say when their first epoch began and their last one ended. This file run as
a script is the loop: ``python _integration_command.py JOB_FOLDER EPOCHS``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from _integration_jobs import LEARNING_RATE, Logits, Scale, two_parts
from _replay_jobs import BATCH
from _report import interleave, median_ratio, medians, table, verdict
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import frostline as fl

_HEAD = "model.classifier"
_FACTORIES = """from _integration_jobs import Logits, two_parts

def build_model():
    return Logits({layers})

def build_data():
    return two_parts({samples})
"""


@dataclass(frozen=True, kw_only=True)
class Spans:
    """One process, in seconds: until its first epoch, its epochs, and what comes after them."""

    start: float
    epochs: float
    end: float
    losses: tuple[float, ...] = ()
    replayed: int = 0

    @property
    def whole(self) -> float:
        """From launch to exit."""
        return self.start + self.epochs + self.end


def by_hand(folder: Path, epochs: int) -> None:
    """The loop, as people write it; prints when its epochs began and ended."""
    layers, samples = json.loads((folder / "scale.json").read_text())
    model, (train, held_out) = Logits(layers), two_parts(samples)
    fl.freeze(model, all_but=_HEAD)
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=LEARNING_RATE)
    batches = fl.replay(model, DataLoader(train, batch_size=BATCH, shuffle=True))
    to_score = fl.replay(model, DataLoader(held_out, batch_size=BATCH))
    began = time.time()
    for _ in range(epochs):
        model.train()
        for inputs, labels in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), labels)
            loss.item()  # to show it, as the command does
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(x).argmax(-1) == y).sum()) for x, y in to_score)
    print(json.dumps([began, time.time(), right / len(held_out)]))


def command(scale: Scale) -> None:
    """A table of both, start-up and ending told apart, and whether replay changed a loss."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "scale.json").write_text(json.dumps([scale.layers, scale.samples]))
        (folder / "job.py").write_text(
            _FACTORIES.format(layers=scale.layers, samples=scale.samples)
        )
        spans: dict[str, list[Spans]] = {name: [] for name in _SIDES}

        def measure(name: str) -> float:
            spans[name].append(_SIDES[name](folder, scale.epochs))
            return spans[name][-1].epochs

        taken = interleave(
            {name: partial(measure, name) for name in _SIDES}, rounds=scale.rounds, warmup=1
        )
    kept = {name: runs[1:] for name, runs in spans.items()}
    middle = medians(taken)
    rows = []
    for name, runs in kept.items():
        ratio = median_ratio(taken, name, "by hand")
        parts = {
            part: medians({part: [getattr(run, part) for run in runs]})[part]
            for part in ("start", "end", "whole")
        }
        rows.append(
            [
                name,
                f"{middle[name]:.2f}",
                f"{ratio:.2f}",
                f"{parts['start']:.2f}",
                f"{parts['end']:.2f}",
                f"{parts['whole']:.2f}",
                f"at most 1.2: {verdict(ratio, 1.2)}" if name == "command" else "",
            ]
        )
    print(
        "## frostline finetune\n\nAs processes: the command with `--replay memory`, without replay,"
        " and fl.replay in a loop written by hand, scoring after each epoch too. Start is all"
        " before the first epoch (Python, imports, model, data; for the command also the base's"
        " fingerprints, the frost line and a first score), end all after the last (for the command:"
        " proof, weights, the measured savings, the result). The command's epochs include its"
        " checkpoints, all but the last.\n"
    )
    columns = ["side", "epochs, s", "of by hand", "start, s", "end, s", "whole, s", "target"]
    table(columns, rows)
    pairs = zip(kept["command"], kept["command, replay off"], strict=True)
    same = all(one.losses == other.losses for one, other in pairs)
    told = "the same bits" if same else "not the same"
    print(
        f"Mean losses of the command's epochs with replay and without: {told};"
        f" {kept['command'][-1].replayed} batches were replayed.\n"
    )


def _run_by_hand(folder: Path, epochs: int) -> Spans:
    launched = time.time()
    printed = _call([sys.executable, __file__, str(folder), str(epochs)], folder)
    ended = time.time()
    began, stopped, _ = json.loads(printed.splitlines()[-1])
    return Spans(start=began - launched, epochs=stopped - began, end=ended - stopped)


def _run_command(folder: Path, epochs: int, *, replay: str) -> Spans:
    launched = time.time()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        arguments = {
            "--model": "job.py:build_model",
            "--data": "job.py:build_data",
            "--train": _HEAD,
            "--epochs": str(epochs),
            "--batch-size": str(BATCH),
            "--lr": str(LEARNING_RATE),
            "--replay": replay,
            "--out": out,
        }
        flat = [word for pair in arguments.items() for word in pair]
        _call([sys.executable, "-m", "frostline", "finetune", *flat, "--json"], folder)
        ended = time.time()
        (run,) = Path(out).iterdir()
        # The configuration is written just before the first epoch, a line of metrics after each.
        began = (run / "config.yaml").stat().st_mtime
        stopped = (run / "metrics.jsonl").stat().st_mtime
        lines = (run / "metrics.jsonl").read_text().splitlines()
        result = json.loads((run / "result.json").read_text())
    return Spans(
        start=began - launched,
        epochs=stopped - began,
        end=ended - stopped,
        losses=tuple(json.loads(line)["loss"] for line in lines),
        replayed=(result["replay"] or {}).get("replayed", 0),
    )


_SIDES = {
    "by hand": _run_by_hand,
    "command": partial(_run_command, replay="memory"),
    "command, replay off": partial(_run_command, replay="off"),
}


def _call(words: list[str], folder: Path) -> str:
    """Run a process to its end; gives what it printed."""
    here = str(Path(__file__).parent)
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    by_hand(Path(sys.argv[1]), int(sys.argv[2]))
