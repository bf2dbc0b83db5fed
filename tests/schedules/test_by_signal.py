"""Methods that go by signals, fed with signals that were written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from frostline.schedules import (
    APF,
    LPFT,
    Alpha,
    AutoFreeze,
    AutoRGN,
    Plasticity,
    Progress,
    layout_of,
)
from frostline.schedules.autofreeze import percentile

NAMES = ["b0", "b1", "b2", "b3"]


class Game:
    """Asks a schedule again and again, and carries out what it says."""

    def __init__(self, schedule, **run):
        parts = {name: nn.Linear(2, 2, bias=False) for name in ["stem", *NAMES, "head"]}
        self.layout = layout_of(nn.ModuleDict(parts), grain=schedule.traits.grain, named=NAMES)
        self.schedule, self.run = schedule, {"total_steps": 100, "steps_per_epoch": 10, **run}
        self.trains, self.step, self.epoch = self.layout.names, 0, 0
        self.state = schedule.start(self.now("start"))
        self.last = self.tell("start")

    def now(self, at, **more):
        return Progress(
            at=at, layout=self.layout, trains=self.trains, step=self.step, epoch=self.epoch,
            **self.run, **more,
        )  # fmt: skip

    def tell(self, at, signals=None, **more):
        self.last = self.schedule.decide(self.now(at, **more), signals or {}, self.state)
        self.state = self.last.state
        if self.last.train is not None:
            self.trains = self.last.train
        return self.last

    def steps(self, count, signals=None, **more):
        for _ in range(count):
            self.step += 1
            self.tell("step", signals, **more)
        return self

    def frozen(self):
        return [u.name for u in self.layout.units if u.name not in self.trains]


def sums(*values):
    return {"accumulated_gradients": dict(zip(NAMES, values, strict=True))}


def test_autofreeze_freezes_below_the_first_that_still_changes() -> None:
    game = Game(AutoFreeze(looks_per_epoch=5))  # every 2 steps
    game.steps(2, sums(10, 10, 10, 10))
    assert game.frozen() == []
    assert game.last.restart == {"accumulated_gradients"}
    # Changes 0.1, 0.2, 0.5, 0.4; their median is 0.3: b2 is the first at or above it.
    game.steps(2, sums(9, 12, 5, 14))
    assert game.frozen() == ["stem", "b0", "b1"]
    assert game.last.numbers == pytest.approx(
        {"threshold": 0.3, "change b0": 0.1, "change b1": 0.2, "change b2": 0.5, "change b3": 0.4}
    )


def test_autofreeze_looks_only_when_it_is_time() -> None:
    game = Game(AutoFreeze(looks_per_epoch=2))  # every 5 steps
    looks = []
    for _ in range(10):
        game.steps(1, sums(1, 1, 1, 1))
        looks += [game.step] * bool(game.last.restart)
    game.tell("epoch", sums(1, 1, 1, 1))
    assert looks == [5, 10]
    assert not game.last.restart


def test_autofreeze_leaves_one_block_and_never_thaws() -> None:
    game = Game(AutoFreeze(looks_per_epoch=10))
    for n in range(1, 20):
        game.steps(1, sums(1.01**n, 1.02**n, 1.03**n, 1.5**n))
    assert game.frozen() == ["stem", "b0", "b1", "b2"]
    assert game.schedule.needs(game.now("step"), game.state) == frozenset()


def test_autofreeze_begins_again_after_an_overflow() -> None:
    game = Game(AutoFreeze(looks_per_epoch=10))
    game.steps(1, sums(10, 10, 10, 10)).steps(1, sums(10, math.inf, 10, 10))
    assert game.state == {"before": None}
    game.steps(1, sums(10, 10, 10, 10))
    assert game.frozen() == []


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 25, 1.75),
        ([1.0, 2.0], 0, 1.0),
        ([1.0, 2.0], 100, 2.0),
        ([5.0], 50, 5.0),
        ([1.0, math.inf, math.inf], 60, math.inf),
    ],
)
def test_percentiles(values, percent, expected) -> None:
    assert percentile(values, percent) == expected


def test_alpha_stops_at_the_least_gradient_if_asked() -> None:
    game = Game(Alpha(alpha=0.75, gradient_gate=True))
    norms = {"stem": 1.0, "b0": 3.0, "b1": 1.0, "b2": 2.0, "b3": 9.0, "head": 0.1}
    game.epoch = 1
    game.tell("epoch", {"gradient_norms": norms})
    assert game.frozen() == ["stem", "b0"]
    game.epoch = 2
    left = {"b1": 2.0, "b2": 1.0, "b3": 9.0, "head": 0.1}
    game.tell("epoch", {"gradient_norms": left})
    assert game.frozen() == ["stem", "b0", "b1"]


def seen(value, front="b0"):
    return {"similarity": {front: value}}


def test_plasticity_freezes_the_front_when_the_gap_stands_still() -> None:
    game = Game(Plasticity(period=1, window=2, patience=2, tolerance=0.2))
    # Slope of the two-look average: 0.5, 0.45, then 0.05 and 0: two in a row stand still.
    for value in (0.0, 0.5, 1.0, 1.4, 1.1):
        game.steps(1, seen(value))
    assert game.frozen() == []
    game.steps(1, seen(1.4))
    assert game.frozen() == ["stem", "b0"]
    assert game.last.restart == {"similarity"}
    assert game.state["looks"] == []


def test_plasticity_thaws_when_the_rate_has_dropped_tenfold() -> None:
    game = Game(Plasticity(period=1, window=1, patience=1, tolerance=1.0))
    game.steps(2, seen(0.5))
    assert game.frozen() == ["stem", "b0"]
    game.steps(1, seen(0.5, "b1"), rate=0.11)
    assert game.frozen() == ["stem", "b0"]
    game.steps(1, seen(0.5, "b1"), rate=0.1)
    assert game.frozen() == []
    game.steps(1, seen(0.5), rate=0.05)
    assert game.frozen() == []  # the next thaw is at 0.01


def test_plasticity_takes_a_warm_up_for_what_it_is() -> None:
    game = Game(Plasticity(period=1, window=1, patience=1, tolerance=1.0))
    game.state = {**game.state, "rate": 0.01}
    game.steps(1, seen(0.5), rate=1.0).steps(1, seen(0.5), rate=0.5)
    assert game.frozen() == ["stem", "b0"]
    assert game.state["rate"] == 1.0


def test_plasticity_leaves_one_block() -> None:
    game = Game(Plasticity(period=1, window=1, patience=1, tolerance=1.0))
    for front in ("b0", "b1", "b2", "b3"):
        game.steps(4, seen(0.5, front))
    assert game.frozen() == ["stem", "b0", "b1", "b2"]


def test_plasticity_passes_over_what_was_not_seen() -> None:
    game = Game(Plasticity(period=1, window=1, patience=1, tolerance=1.0))
    game.steps(3, {"similarity": {}}).steps(3, seen(math.nan))
    assert game.frozen() == []
    assert game.state["looks"] == []


def test_plasticity_asks_only_for_steps_in_which_it_looks() -> None:
    game = Game(Plasticity(period=3))
    asked = []
    for _ in range(6):
        asked.append(bool(game.schedule.needs(game.now("step"), game.state)))
        game.steps(1, seen(0.5))
    assert asked == [False, False, True, False, False, True]


def changes(**moves):
    return {"weight_change": {f"{n}.weight": torch.tensor(move) for n, move in moves.items()}}


def test_apf_rests_what_jitters_and_longer_each_time() -> None:
    game = Game(APF(period=1, decay=0.5, threshold=0.4))
    travels = {name: [1.0, 1.0] for name in ("stem", "b1", "b2", "b3", "head")}
    game.steps(1, changes(b0=[1.0, -1.0], **travels))
    assert game.frozen() == []  # the first change is all in one direction
    game.steps(1, changes(b0=[-1.0, 1.0], **travels))
    # m = 0.5 · 0.5 - 0.5 = -0.25, a = 0.75: P = 1/3 < 0.4, so b0 rests for one look.
    assert game.frozen() == ["b0.weight"]
    game.steps(1, changes(**travels))
    assert game.frozen() == []
    game.steps(1, changes(b0=[1.0, -1.0], **travels))
    # m = 0.375, a = 0.875: P = 0.43, no rest, and the next one starts from half of 1.
    assert game.frozen() == []
    assert game.state["rests"]["b0.weight"] == 0
    assert game.last.restart == {"weight_change"}


def test_apf_rests_grow_while_it_jitters() -> None:
    game = Game(APF(period=1, decay=0.9, threshold=0.5))
    sign, rested = 1.0, []
    for _ in range(60):
        sign = -sign
        game.steps(1, changes(b0=[sign]))
        rested.append("b0.weight" in game.frozen())
    lengths = [len(run) for run in "".join("x" if r else " " for r in rested).split()]
    assert lengths[:5] == [1, 2, 3, 4, 5]


def test_apf_halves_the_threshold_when_most_rests() -> None:
    game = Game(APF(period=1, decay=0.5, threshold=0.4, crowded=0.5))
    body = ("stem", "b0", "b1", "b2", "b3")
    game.steps(1, changes(**{name: [1.0, -1.0] for name in body}))
    game.steps(1, changes(**{name: [-1.0, 1.0] for name in body}))
    assert game.frozen() == [f"{name}.weight" for name in body]
    assert game.state["threshold"] == 0.2
    assert game.trains == {"head.weight"}


def ratios(**values):
    return {"relative_gradients": {f"{name}.weight": value for name, value in values.items()}}


def test_autorgn_scales_by_the_mean_ratio() -> None:
    game = Game(AutoRGN(batches=2, freeze_below=0.1))
    game.steps(1, ratios(stem=0.1, b0=1.0, b1=0.0, b2=2.0, b3=0.5))
    assert game.frozen() == []
    game.steps(1, ratios(stem=0.2, b0=1.0, b1=0.1, b2=2.0, b3=math.nan))
    assert game.frozen() == ["stem.weight", "b1.weight"]
    # Of 4.0 in all; the head gave no ratio, so it has everything to learn.
    assert game.last.rates == {
        "b0.weight": 0.5, "b2.weight": 1.0, "b3.weight": 0.125, "head.weight": 1.0,
    }  # fmt: skip
    assert game.schedule.needs(game.now("step"), game.state) == frozenset()


def test_autorgn_measures_again_each_epoch_if_asked() -> None:
    game = Game(AutoRGN(batches=1, freeze_below=0.1, every_epochs=2))
    game.steps(1, ratios(b0=1.0, b1=0.0))
    assert game.frozen() == ["b1.weight"]
    for epoch, frozen in ((1, ["b1.weight"]), (2, [])):
        game.epoch = epoch
        game.tell("epoch")
        assert game.frozen() == frozen


def test_autorgn_without_any_gradient_trains_on() -> None:
    game = Game(AutoRGN(batches=1)).steps(1, ratios(b0=0.0))
    assert game.frozen() == []


def test_lpft_ends_its_probe_when_the_metric_stalls() -> None:
    game = Game(LPFT(patience=2), total_steps=1000)
    assert game.trains == {"head"}
    for metric, trains in ((0.5, 1), (0.4, 1), (0.7, 1), (0.6, 1), (0.7, 6)):
        game.tell("epoch", metric=metric)
        assert len(game.trains) == trains
    assert set(game.last.rates.values()) == {0.1}
    assert game.last.numbers == {"best metric": 0.7}


def test_lpft_without_a_metric_ends_its_probe_by_the_clock() -> None:
    game = Game(LPFT(probe_share=0.25))
    assert len(game.steps(24).trains) == 1
    assert len(game.steps(1).trains) == 6
