"""Frostline in the Trainer, in Lightning, with PEFT and by command: its cost, and its replay.

Every table has all sides, in turns, from fresh copies. Run it with ``--quick`` for a look, with
``--only trainer --only command`` for parts of it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial

import torch
import transformers
from _integration_command import command
from _integration_jobs import Scale
from _integration_sections import COST_EPOCHS, in_framework, lora
from _replay_jobs import BATCH
from _report import heading

SECTIONS: dict[str, Callable[[Scale], None]] = {
    "trainer": partial(in_framework, "trainer"),
    "lightning": partial(in_framework, "lightning"),
    "lora": lora,
    "command": command,
}


def main() -> None:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, few samples, a round")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="a part of it")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (2)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (5); 1 with --quick")
    chosen = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    transformers.logging.set_verbosity_error()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(chosen.threads)
    scale = Scale(
        layers=4 if chosen.quick else 12,
        samples=(8 if chosen.quick else 32) * BATCH,
        cost_samples=(8 if chosen.quick else 16) * BATCH,
        epochs=10,
        rounds=1 if chosen.quick else chosen.repeats,
    )
    heading(
        "In frameworks",
        f"{datetime.now(timezone.utc):%Y-%m-%d}. A ViT of {scale.layers} layers, width 192, random"
        f" weights, of which the head trains; scikit-learn's digits at 48 pixels, batches of"
        f" {BATCH}, shuffled, AdamW; {scale.samples} samples, {scale.epochs} epochs with replay;"
        f" {scale.cost_samples} samples, {COST_EPOCHS} epochs for the callback's cost. Logging,"
        " checkpoints, bars and validation are off. 'Bare' is the framework with the backbone"
        f" frozen by hand, 'again' the same once more. {scale.rounds} rounds; ratios are medians of"
        " those within a round. A step is the mean of the median epoch after the first, and"
        " 'once' what a run takes beyond such steps."
        + (" A quick look: too short for the targets." if chosen.quick else ""),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for name in chosen.only or SECTIONS:
            SECTIONS[name](scale)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
