"""What replay saves: epochs against way four by hand, and against the live part alone.

Every row has both sides, in turns, in this process (memory: in processes of their own). Run it
with ``--quick`` for a look, with ``--only head --only memory`` and ``--model vit`` for parts of it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

import torch
from _replay_files import HAS_PILLOW
from _replay_frameworks import frameworks
from _replay_jobs import BATCH, JOBS, Scale
from _replay_memory import memory
from _replay_speed import files, head, last_two, run, second_run
from _report import heading

SECTIONS = {
    "head": head,
    "last-two": last_two,
    "second-run": second_run,
    "files": files,
    "memory": memory,
    "frameworks": frameworks,
}


def _warm_up(scale: Scale) -> None:
    """Load what is loaded on first use, on both sides, before anything is measured."""
    job = JOBS[scale.jobs[0]]
    run(job, job.data(2 * BATCH), replace(scale, epochs=3), ("load", "skip"))


class _Both(io.TextIOBase):
    """Writes to a terminal and keeps what was written."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self.kept = io.StringIO()

    def write(self, text: str) -> int:
        self.kept.write(text)
        return self._terminal.write(text)

    def flush(self) -> None:
        self._terminal.flush()


@contextlib.contextmanager
def _copied_to(path: Path | None) -> Iterator[None]:
    both = _Both(sys.stdout)
    with contextlib.redirect_stdout(both):
        yield
    if path is not None:
        path.write_text(both.kept.getvalue().rstrip() + "\n")


def main() -> None:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples, few epochs, no repeats")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="a part of it")
    parser.add_argument("--model", action="append", choices=list(JOBS), help="some of the models")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (2)")
    parser.add_argument("--repeats", type=int, default=3, help="runs from fresh copies (3)")
    parser.add_argument("--out", type=Path, help="a file that gets the tables, too")
    chosen = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(chosen.threads)
    scale = Scale(
        jobs=tuple(chosen.model or JOBS),
        samples=4 * BATCH if chosen.quick else 56 * BATCH,
        epochs=7 if chosen.quick else 10,
        repeats=1 if chosen.quick else chosen.repeats,
        width=384 if chosen.quick else 768,
        threads=chosen.threads,
    )
    with _copied_to(chosen.out):
        described = "; ".join(f"{JOBS[name].name} ({JOBS[name].what})" for name in scale.jobs)
        heading(
            "Replay",
            f"{datetime.now(timezone.utc):%Y-%m-%d}. {described}. scikit-learn's digits, enlarged"
            f" to 48 pixels or read as texts of 64 words: {scale.samples} samples, a multiple of"
            f" the batch size, {BATCH}. AdamW, shuffled, loaded in the process itself, random"
            " weights, dropout as the configurations have it. Way four by hand: requires_grad off,"
            " backbone in eval mode, the optimizer given what trains. Both sides take epochs in"
            f" turns; runs of {scale.epochs} epochs, {scale.repeats} from fresh copies."
            + (" A quick look: too short for the targets." if chosen.quick else ""),
        )
        installed = {
            name: importlib.metadata.version(name)
            for name in ("transformers", "scikit-learn", "numpy")
        } | ({"pillow": importlib.metadata.version("pillow")} if HAS_PILLOW else {})
        print(", ".join(f"{name} {version}" for name, version in installed.items()) + ".\n")
        _warm_up(scale)
        for name in chosen.only or SECTIONS:
            SECTIONS[name](scale)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
