"""What every framework's integration promises, on one job, with the same words."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_jobs import HEAD, STEPS, Job, Outcome

import frostline as fl

FRAMEWORKS = ("huggingface", "lightning", "accelerate")
NEEDS = {"huggingface": "transformers", "lightning": "lightning", "accelerate": "accelerate"}

THAW = fl.schedules.Explicit(
    [
        {"epoch": 0, "train": ["head"]},
        {"epoch": 1, "train": ["head", "blocks.2"]},
        {"epoch": 2, "train": ["head", "blocks.2", "blocks.1"]},
    ]
)
"""Thaws from the head down, one block an epoch."""

LATE_THAW = fl.schedules.Explicit(
    [{"epoch": 0, "train": ["head"]}, {"epoch": 2, "train": ["head", "blocks.2"]}]
)
"""Two epochs each way, so that there is something to replay before the thaw and after it."""

Run = Callable[[Job], Outcome]


@pytest.fixture(params=FRAMEWORKS)
def run(request: pytest.FixtureRequest) -> Run:
    pytest.importorskip(NEEDS[request.param])
    found: Run = importlib.import_module(f"framework_{request.param}").run
    return found


def moved(outcome: Outcome) -> set[str]:
    return {
        name
        for name, tensor in outcome.weights.items()
        if not torch.equal(tensor, outcome.initial[name])
    }


def assert_same(one: Outcome, other: Outcome) -> None:
    different = [n for n, t in one.weights.items() if not torch.equal(t, other.weights[n])]
    assert different == []


def parts(names: set[str]) -> set[str]:
    """The top-level parts, blocks one by one, that these tensors belong to."""
    return {".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]) for name in names}


def test_nothing_frozen_moves_and_everything_trainable_trains(run: Run, tmp_path: Path) -> None:
    outcome = run(Job(out=tmp_path, plan=HEAD, epochs=1))
    # Statistics of the frozen blocks are buffers of theirs: they would be named here.
    assert parts(moved(outcome)) == {"blocks.2", "head"}
    assert moved(outcome) == {n for n in outcome.weights if n.startswith(("blocks.2", "head"))}
    assert set(outcome.frozen) == {
        n
        for n in outcome.weights
        if n.startswith(("stem", "blocks.0", "blocks.1")) and n.endswith(("weight", "bias"))
    }


def test_the_frozen_part_stands_still_under_accumulation(run: Run, tmp_path: Path) -> None:
    outcome = run(Job(out=tmp_path, plan=HEAD, epochs=1, accumulate=2))
    assert len(outcome.losses) == STEPS
    assert parts(moved(outcome)) == {"blocks.2", "head"}


def test_what_a_schedule_thaws_trains(run: Run, tmp_path: Path) -> None:
    one, two, three = (
        run(Job(out=tmp_path / str(epochs), schedule=THAW, epochs=epochs)) for epochs in (1, 2, 3)
    )
    assert parts(moved(one)) == {"head"}
    assert parts(moved(two)) == {"head", "blocks.2"}
    assert parts(moved(three)) == {"head", "blocks.2", "blocks.1"}
    # What thawed is the model that would have been: the earlier epochs are the same run.
    assert three.losses[: 2 * STEPS] == two.losses
    assert two.losses[:STEPS] == one.losses


@pytest.mark.parametrize(
    "how",
    [{"plan": HEAD}, {"plan": HEAD, "accumulate": 2}, {"schedule": THAW}],
    ids=["plan", "accumulation", "past-a-thaw"],
)
def test_a_resumed_run_is_the_same_run(run: Run, how: dict[str, Any], tmp_path: Path) -> None:
    job = Job(out=tmp_path / "whole", epochs=3, **how)
    whole = run(job)
    steps = -(-STEPS // job.accumulate)
    # The second of three epochs is over, and under the schedule the first thaw with it.
    stopped = run(replace(job, out=tmp_path / "stopped", stop_after=2 * steps))
    assert stopped.losses == whole.losses[: 2 * STEPS]
    resumed = run(replace(job, out=tmp_path / "resumed", resume_from=stopped.checkpoint))
    assert resumed.losses == whole.losses[2 * STEPS :]
    assert resumed.frozen == whole.frozen
    assert_same(resumed, whole)


@pytest.mark.parametrize(
    "how",
    [{"plan": HEAD}, {"plan": HEAD, "accumulate": 2}, {"schedule": LATE_THAW, "epochs": 4}],
    ids=["plan", "accumulation", "schedule"],
)
def test_replay_changes_no_bit(run: Run, how: dict[str, Any], tmp_path: Path) -> None:
    plain, replayed = (
        run(Job(out=tmp_path / str(replay), replay=replay, batch_size=4, **{"epochs": 3, **how}))
        for replay in (False, True)
    )
    assert plain.replayed == 0
    assert replayed.replayed > STEPS
    assert replayed.losses == plain.losses
    assert_same(replayed, plain)


def test_a_plan_that_matches_nothing_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(fl.SelectorError, match=r"blocks\.9"):
        run(Job(out=tmp_path, plan=fl.Plan.all_but("blocks.9")))


def test_a_checkpoint_of_another_plan_is_refused(run: Run, tmp_path: Path) -> None:
    job = Job(out=tmp_path / "one", plan=HEAD)
    stopped = run(replace(job, stop_after=STEPS))
    other = replace(job, plan=fl.Plan.all_but("head"), resume_from=stopped.checkpoint)
    with pytest.raises(fl.FrostlineError, match=r"blocks\.2"):
        run(replace(other, out=tmp_path / "other"))
