"""What a run looks like on a terminal, from results written out by hand."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from frostline.cli.finetune_view import Display, show
from frostline.finetune.metrics import EpochMetrics
from frostline.finetune.result import (
    Cost,
    Measure,
    ProofReport,
    ReplayReport,
    Result,
    Savings,
    ScheduleReport,
    Trained,
)
from frostline.proof import Change

RESULT = Result(
    run=Path("runs/digits-cnn-20250131-123005"),
    model="digits-cnn",
    data="digits",
    kind="custom",
    followed="accuracy",
    epochs=10,
    best_epoch=10,
    train_seconds=1.25,
    trained=Trained(rules="freeze: **; train: head", parameters=645, of=130_533),
    accuracy=Measure(before=0.2, after=0.9778, held_out=225),
    loss=Measure(before=1.5, after=0.0625, held_out=225),
    f1=None,
    proof=ProofReport(parameters=12, buffers=12, seconds=0.0012, changes=()),
    saved=Savings(
        frozen=Cost(
            gradient_bytes=1024, optimizer_state_bytes=0, activation_bytes=2048, step_seconds=0.003
        ),
        full=Cost(
            gradient_bytes=4096, optimizer_state_bytes=0, activation_bytes=2048, step_seconds=0.002
        ),
    ),
    next="frostline inspect runs/digits-cnn-20250131-123005/model.safetensors",
)

VIEW = """
    accuracy 20.0% (the head is new) → 97.8% on 225 held-out scans; 10 epochs in 1.25 s
    proof holds: 24 frozen tensors (12 parameters, 12 buffers) are bitwise unchanged;
    checked in 1.2 ms
    trained 645 of 130,533 parameters (freeze: **; train: head)
    one step frozen full training saved
    gradients 1.0 KiB 4.0 KiB 75%
    optimizer state 0 B 0 B -
    activations kept 2.0 KiB 2.0 KiB 0%
    time 3 ms 2 ms -50%
    run runs/digits-cnn-20250131-123005
    next frostline inspect runs/digits-cnn-20250131-123005/model.safetensors
"""

EPOCH = EpochMetrics(epoch=1, loss=0.5, accuracy=0.75, held_out_loss=0.25, f1=None, seconds=0.1)

MOVED = Change(
    name="stem.1.running_mean",
    kind="buffer",
    elements=32,
    moved=1,
    max_abs=1e-7,
    cause="someone nudged it",
)


def shown(result: Result, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show(result, console)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


@pytest.mark.parametrize("width", [80, 120])
def test_the_view_of_a_run(width):
    text = shown(RESULT, width)
    assert " ".join(text.split()) == " ".join(line.strip() for line in VIEW.splitlines()).strip()
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        pytest.param(
            {"kind": "image-classification", "data": "photos", "best_epoch": 7},
            "accuracy 20.0% (the head is new) → 97.8% on 225 held-out images; 10 epochs (kept: 7)"
            " in 1.25 s",
            id="images-and-the-best-epoch",
        ),
        pytest.param(
            {"kind": "causal-lm", "data": "books", "followed": "loss", "epochs": 1},
            "perplexity 4.482 → 1.064 on 225 held-out blocks of text; 1 epoch (kept: 10)",
            id="perplexity",
        ),
        pytest.param(
            {
                "kind": "token-classification",
                "data": "names",
                "model": "bert",
                "followed": "f1",
                "f1": Measure(before=0.0, after=0.5, held_out=225),
            },
            "F1 0.0% → 50.0% on 225 held-out texts; 10 epochs in 1.25 s accuracy 20.0% → 97.8%",
            id="tokens",
        ),
    ],
)
def test_each_task_is_told_by_its_own_measure(fields, line):
    assert line in " ".join(shown(replace(RESULT, **fields)).split())


def test_the_view_of_a_proof_that_failed():
    failed = replace(RESULT, proof=replace(RESULT.proof, changes=(MOVED,)), saved=None)
    text = " ".join(shown(failed).split())
    assert "proof FAILED: 1 of 24 frozen tensors (12 parameters, 12 buffers) changed" in text
    assert "one step" not in text


@pytest.mark.parametrize(
    ("share", "line"),
    [
        pytest.param(1.0, "holds: what thawed had not changed by then, and nothing", id="thawed"),
        pytest.param(0.0, "holds: nothing was to be proved, and nothing is frozen", id="never"),
    ],
)
def test_the_view_of_a_schedule_that_ends_with_nothing_frozen(share, line):
    report = ScheduleReport(
        name="lpft", transitions=1, places=("stem", "head"), frozen=((share, 0.0), (0.0, 0.0))
    )
    proof = replace(RESULT.proof, parameters=0, buffers=0)
    text = shown(replace(RESULT, schedule=report, proof=proof, saved=None))
    assert line in " ".join(text.split())
    assert "schedule lpft: 1 transition in 2 epochs" in text
    assert max(map(len, text.splitlines())) <= 80


def test_paths_are_neither_markup_nor_broken():
    run = Path("[red]" + "a" * 100 + "[/red]")
    assert f"run       {run}" in shown(replace(RESULT, run=run)).splitlines()


REPLAYED = ReplayReport(
    place="/home/me/.cache/frostline/replay",
    recorded=30,
    replayed=210,
    plain=10,
    skipped_share=0.913,
    kept_bytes=2048,
    saved_seconds=12.5,
    why_not=None,
)


@pytest.mark.parametrize(
    ("report", "line"),
    [
        pytest.param(
            REPLAYED,
            "replay saved about 12.5 s; 210 of 250 batches left out 91.3% of the forward pass;"
            " 2.0 KiB kept in /home/me/.cache/frostline/replay one step",
            id="saved",
        ),
        pytest.param(
            replace(REPLAYED, saved_seconds=-0.25),
            "replay took about 250 ms more than it saved, with trials, recording and checks; 210",
            id="cost-more",
        ),
        pytest.param(
            replace(REPLAYED, why_not="it is switched off (replay: off)"),
            "replay nothing was replayed: it is switched off (replay: off) one step",
            id="nothing",
        ),
    ],
)
def test_what_replay_saved(report, line):
    text = shown(replace(RESULT, replay=report))
    assert line in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_on_a_terminal_and_elsewhere(terminal):
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=terminal, color_system=None)
    with Display(console) as display:
        display.note("a [note]")
        display.begin(epochs=2, done=0, steps=1)
        for epoch in (1, 2):
            display.step(0.5)
            display.epoch(replace(EPOCH, epoch=epoch))
        display.measuring()
    written = stream.getvalue()
    assert "a [note]\n" in written
    if terminal:
        assert "measuring what freezing saved" in written
        assert written.endswith("\x1b[2K")  # the bar is cleared
    else:
        assert written.splitlines() == [
            "a [note]",
            "epoch 1/2  loss 0.500  accuracy 75.0%",
            "epoch 2/2  loss 0.500  accuracy 75.0%",
        ]
