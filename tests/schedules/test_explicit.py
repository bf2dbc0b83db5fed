from __future__ import annotations

import pytest
from torch import nn

import frostline as fl
from frostline.schedules import Explicit, Phase, Progress, layout_of


def play(schedule, told):
    """What trains after each (at, step, epoch, metric)."""
    model = nn.ModuleDict({"stem": nn.Linear(2, 2), "b": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    layout = layout_of(model, grain="tensor", named=["b"])
    now = Progress(at="start", layout=layout, trains=layout.names)
    state = schedule.start(now)
    trained = None
    said = []
    for at, step, epoch, metric in told:
        now = Progress(
            at=at, layout=layout, trains=trained or layout.names, step=step, epoch=epoch,
            metric=metric,
        )  # fmt: skip
        decision = schedule.decide(now, {}, state)
        state = decision.state
        trained = decision.train or trained
        said.append(trained and sorted({name.partition(".")[0] for name in trained}))
    return said


EPOCHS = [("start", 0, 0, None), *(("epoch", 5 * e, e, None) for e in (1, 2, 3))]


def test_phases_by_epoch() -> None:
    schedule = Explicit([{"epoch": 0, "train": ["head"]}, {"epoch": 2, "train": ["head", "b"]}])
    assert play(schedule, EPOCHS) == [["head"], ["head"], ["b", "head"], ["b", "head"]]


def test_phases_by_step() -> None:
    schedule = Explicit([{"step": 0, "train": ["head"]}, {"step": 3, "train": ["b"]}])
    steps = [("start", 0, 0, None), *(("step", s, 0, None) for s in (1, 2, 3, 4))]
    assert play(schedule, steps) == [["head"], ["head"], ["head"], ["b"], ["b"]]


def test_before_the_first_phase_all_stays_as_it_is() -> None:
    assert play(Explicit([{"epoch": 1, "train": ["b"]}]), EPOCHS[:2]) == [None, ["b"]]


def test_phases_that_have_all_come_are_passed_through() -> None:
    moments = (("epoch", 0, "head"), ("step", 2, "b"), ("step", 4, "stem"))
    schedule = Explicit([{kind: moment, "train": [part]} for kind, moment, part in moments])
    late = [("start", 0, 0, None), ("step", 9, 0, None)]
    assert play(schedule, late) == [["head"], ["stem"]]


def test_a_phase_waits_for_the_metric_to_stall() -> None:
    schedule = Explicit([{"epoch": 0, "train": ["head"]}, {"stall": 2, "train": ["**"]}])
    metrics = [0.5, 0.6, 0.6, 0.55]
    told = [("start", 0, 0, None), *(("epoch", 0, e, m) for e, m in enumerate(metrics, 1))]
    assert play(schedule, told) == 4 * [["head"]] + [["b", "head", "stem"]]
    lower = Explicit(schedule.phases, better="min")
    assert play(lower, told)[:4] == 3 * [["head"]] + [["b", "head", "stem"]]


def test_rates_by_selector() -> None:
    schedule = Explicit([{"epoch": 0, "train": ["**"], "rates": {"stem": 0.1, "b.bias": 2}}])
    model = nn.ModuleDict({"stem": nn.Linear(2, 2), "b": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    layout = layout_of(model, grain="tensor", named=["b"])
    now = Progress(at="start", layout=layout, trains=layout.names)
    decision = schedule.decide(now, {}, schedule.start(now))
    assert decision.rates == {"stem.weight": 0.1, "stem.bias": 0.1, "b.bias": 2}


def test_one_selector_may_stand_for_a_list() -> None:
    assert Phase(train="head", epoch=0) == Phase(train=("head",), epoch=0)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        pytest.param([], "at least one phase", id="no phase"),
        pytest.param([{"epoch": 0, "train": []}], "trains nothing", id="names nothing"),
        pytest.param([{"epoch": 0}], "does not say what to train", id="no train"),
        pytest.param([{"train": ["a"]}], "exactly one of them; got none", id="no moment"),
        pytest.param(
            [{"epoch": 0, "step": 3, "train": ["a"]}], r"got \['epoch', 'step'\]", id="two moments"
        ),
        pytest.param(
            [{"epoch": 1, "train": ["a"]}, {"epoch": 1, "train": ["b"]}],
            "phases 1 and 2 overlap: epoch 1 is not after epoch 1",
            id="overlap",
        ),
        pytest.param(
            [{"step": 9, "train": ["a"]}, {"step": 3, "train": ["b"]}], "overlap", id="disorder"
        ),
        pytest.param([{"epoch": -1, "train": ["a"]}], "at least 0, got -1", id="negative"),
        pytest.param([{"epoch": 0.5, "train": ["a"]}], "whole number", id="fraction"),
        pytest.param(
            [{"epoch": 0, "train": ["a"]}, {"stall": 0, "train": ["b"]}],
            "stall must be a whole number of at least 1",
            id="stall of nothing",
        ),
        pytest.param([{"stall": 1, "train": ["a"]}], "first phase can't wait", id="stall at first"),
        pytest.param([{"epoch": 0, "trian": ["a"]}], "'trian'. Nearest names: 'train'", id="typo"),
        pytest.param(["head"], "phase 1 must be a mapping", id="no mapping"),
        pytest.param("head", "phases are a list", id="no list"),
        pytest.param(
            [{"epoch": 0, "train": ["a"], "rates": {"a": 0}}], "above 0, got 0", id="rate of zero"
        ),
    ],
)
def test_what_is_refused(phases, message: str) -> None:
    with pytest.raises(fl.FrostlineError, match=message) as caught:
        Explicit(phases)
    assert isinstance(caught.value, ValueError)


def test_a_phase_that_names_what_is_not_there() -> None:
    with pytest.raises(fl.SelectorError, match="haed"):
        play(Explicit([{"epoch": 0, "train": ["haed"]}]), EPOCHS)


def test_a_stall_without_a_metric() -> None:
    schedule = Explicit([{"epoch": 0, "train": ["head"]}, {"stall": 2, "train": ["**"]}])
    with pytest.raises(ValueError, match="phase 2 begins when the metric stalls, and none came"):
        play(schedule, EPOCHS)
