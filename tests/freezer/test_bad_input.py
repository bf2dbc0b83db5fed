"""What can't be carried out is refused with a clear error, before anything has changed."""

from __future__ import annotations

import math

import pytest
import torch
from scheduling import Run
from torch import nn
from zoo import Net

import frostline as fl
from frostline.errors import ScheduleError
from frostline.freezer import Freezer
from frostline.schedules import (
    APF,
    LISA,
    LPFT,
    Alpha,
    AutoFreeze,
    AutoRGN,
    BAdam,
    FreezeOut,
    GradualUnfreeze,
    Plasticity,
    SurgicalBlock,
    from_plain,
    parse,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: LISA(period=0), "period must be a whole number of at least 1, got 0"),
        pytest.param(lambda: LISA(layers=0), "layers must be a whole number of at least 1"),
        pytest.param(lambda: LISA(seed=-1), "seed must be"),
        pytest.param(lambda: BAdam(steps_per_block=0), "steps_per_block must be"),
        pytest.param(lambda: BAdam(order="up"), "order is one of random, ascending, descending"),
        pytest.param(lambda: AutoFreeze(percentile=101), "at least 0, at most 100, got 101"),
        pytest.param(lambda: AutoFreeze(percentile=math.nan), "at most 100, got nan"),
        pytest.param(lambda: AutoFreeze(looks_per_epoch=0), "looks_per_epoch must be"),
        pytest.param(lambda: Alpha(alpha=0), "above 0, at most 1, got 0"),
        pytest.param(lambda: Alpha(alpha=True), "got True"),
        pytest.param(lambda: FreezeOut(first=1.5), "first must be a number above 0, at most 1"),
        pytest.param(lambda: FreezeOut(curve="round"), "curve is one of linear, squared, cubic"),
        pytest.param(lambda: GradualUnfreeze(decay=0.5), "decay must be a number at least 1"),
        pytest.param(lambda: GradualUnfreeze(epochs_per_group=0), "epochs_per_group must be"),
        pytest.param(lambda: LPFT(probe_share=0), "probe_share must be"),
        pytest.param(lambda: LPFT(better="high"), "better is one of max, min"),
        pytest.param(lambda: Plasticity(window=0), "window must be"),
        pytest.param(lambda: Plasticity(tolerance=0), "tolerance must be"),
        pytest.param(lambda: APF(threshold=0), "threshold must be"),
        pytest.param(lambda: APF(decay=1), "decay must be"),
        pytest.param(lambda: AutoRGN(freeze_below=2), "freeze_below must be"),
        pytest.param(lambda: AutoRGN(every_epochs=0), "every_epochs must be"),
        pytest.param(lambda: SurgicalBlock(blocks=("first",)), "whole numbers"),
        pytest.param(lambda: from_plain("lissa"), "'lissa'. Nearest names: 'lisa'"),
        pytest.param(lambda: from_plain({"schedule": "lisa", "perod": 3}), "no option 'perod'"),
        pytest.param(lambda: from_plain({"period": 3}), "expected the key 'schedule'"),
        pytest.param(lambda: parse("schedule: lisa\nperiod: 0", source="s.yaml"), "period must be"),
        pytest.param(lambda: parse("[", source="s.yaml"), "s.yaml is not YAML"),
        pytest.param(lambda: parse("", source="s.yaml"), "s.yaml: expected the key 'schedule'"),
    ],
)
def test_options_out_of_range(make, message: str) -> None:
    with pytest.raises(ScheduleError, match=message) as caught:
        make()
    assert isinstance(caught.value, ValueError)


def flags(model):
    return [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        pytest.param(LISA(layers=4), "4 blocks are to train at a time, and the model has 2"),
        pytest.param(SurgicalBlock(blocks=(2,)), "there is no block 2: the model has 2"),
        pytest.param(SurgicalBlock(blocks=(-3,)), "there is no block -3"),
        pytest.param(AutoFreeze(least_training=2), "needs at least 3 blocks"),
        pytest.param(Plasticity(least_training=2), "needs at least 3 blocks"),
        pytest.param(BAdam(always=("haed",)), "'haed', which is no unit"),
        pytest.param([{"epoch": 0, "train": ["haed"]}], "haed"),
        pytest.param("lissa", "Nearest names"),
        pytest.param(None, "expected a schedule"),
        pytest.param(LISA, "expected a schedule"),
        pytest.param(3, "expected a schedule"),
    ],
)
def test_a_schedule_that_does_not_suit_the_model(schedule, message: str) -> None:
    model = Net(2)
    model.stem.requires_grad_(False)
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    before = flags(model), [len(g["params"]) for g in optimizer.param_groups]
    with pytest.raises(ValueError, match=message):
        Freezer(model, optimizer, schedule=schedule)
    assert (flags(model), [len(g["params"]) for g in optimizer.param_groups]) == before
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps must be a whole number of at least 1"),
        ({"steps_per_epoch": 2.5}, "steps_per_epoch must be"),
        ({"distributed": "ddp"}, "needs a process group"),
        ({"distributed": "horovod"}, "'ddp', 'fsdp2' or None"),
        ({"blocks": ["nowhere"]}, "nowhere"),
        ({"fixed": "**"}, "no parameter that a schedule may train"),
        ({"fixed": "nowhere"}, "nowhere"),
    ],
)
def test_options_of_the_freezer(options, message: str) -> None:
    model = Net(2)
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    with pytest.raises(ValueError, match=message):
        Freezer(model, optimizer, schedule="lisa", **options)
    assert all(flags(model))


def test_a_selector_of_what_is_fixed() -> None:
    model = Net(2)
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    with pytest.raises(ScheduleError, match="does not touch"):
        Freezer(model, optimizer, schedule=[{"epoch": 0, "train": ["stem"]}], fixed="stem")


def test_no_model_or_no_optimizer() -> None:
    model = Net(2)
    with pytest.raises(fl.ModelTypeError, match="expected a model"):
        Freezer([], torch.optim.SGD(model.parameters()), schedule="lisa")
    with pytest.raises(fl.OptimizerError, match="the optimizer"):
        Freezer(model, "sgd", schedule="lisa")


def test_an_optimizer_that_refuses_what_thaws_is_found_before_the_first_step() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2, bias=False))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    optimizer = torch.optim.Muon(matrices, lr=0.1)
    with pytest.raises(fl.OptimizerError, match="Muon"):
        Freezer(model, optimizer, schedule=[{"epoch": 0, "train": ["**"]}])
    assert all(flags(model))
    assert optimizer.param_groups[0]["params"] == matrices


def test_one_rate_for_all_and_a_schedule_that_sets_many() -> None:
    model = Net(2)
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ScheduleError, match="LBFGS has one learning rate"):
        Freezer(model, optimizer, schedule="freezeout")
    assert all(flags(model))


@pytest.mark.parametrize("metric", [math.nan, math.inf, torch.tensor(math.nan)])
def test_a_metric_that_is_not_finite(metric) -> None:
    run = Run(LPFT())
    with pytest.raises(ScheduleError, match="lpft goes by the metric, and it is"):
        run.freezer.epoch(metric)
    assert run.freezer.position.epoch == 0


def test_a_metric_that_nobody_asked_for_may_be_anything() -> None:
    run = Run("lisa", steps_per_epoch=None)
    run.freezer.epoch(math.nan)
    assert run.freezer.position.epoch == 1


def altered(state, **changes):
    return {**state, **changes}


@pytest.mark.parametrize(
    ("schedule", "load", "message"),
    [
        pytest.param("lisa", lambda s: {}, "this is no saved freezer", id="nothing"),
        pytest.param("lisa", lambda s: altered(s, frostline=9), "format 9", id="other format"),
        pytest.param("badam", lambda s: s, "saved by the schedule 'lisa'", id="other schedule"),
        pytest.param(LISA(period=7), lambda s: s, "period=5, and this freezer has period=7",
                     id="other options"),
        pytest.param("lisa", lambda s: altered(s, units={**s["units"], "x": []}), "without x",
                     id="other model"),
        pytest.param(
            "lisa",
            lambda s: altered(s, frozen=dict.fromkeys(s["frozen"], "0")),
            "frozen with other content: load the model's weights first",
            id="other weights",
        ),
        pytest.param(
            "lisa",
            lambda s: altered(s, frozen={}, optimizer={**s["optimizer"], "optimizer": "SGD"}),
            "the saved state is of SGD",
            id="other optimizer",
        ),
    ],
)  # fmt: skip
def test_a_state_from_elsewhere(schedule, load, message: str) -> None:
    state = Run("lisa").until(6).freezer.state_dict()
    run = Run(schedule).until(11)  # other blocks train than when it was saved
    before = flags(run.model), run.freezer.trains, run.freezer.position, run.bits()
    with pytest.raises(ValueError, match=message):
        run.freezer.load_state_dict(load(state))
    assert (flags(run.model), run.freezer.trains, run.freezer.position, run.bits()) == before
    assert run.until(14).bits() == Run(run.freezer.schedule).until(14).bits()


def test_a_state_for_other_blocks() -> None:
    state = Run("lisa").until(3).freezer.state_dict()
    other = Net(3)
    optimizer = fl.optimizer(torch.optim.AdamW, other, lr=1e-2)
    freezer = Freezer(other, optimizer, schedule="lisa")
    with pytest.raises(ScheduleError, match=r"without layers\.3"):
        freezer.load_state_dict(state)
