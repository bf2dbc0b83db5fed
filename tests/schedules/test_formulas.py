"""Frozen counts and rates over time, as the papers have them, written out."""

from __future__ import annotations

import pytest
from torch import nn

from frostline.schedules import (
    LISA,
    Alpha,
    BAdam,
    FreezeOut,
    GradualUnfreeze,
    Progress,
    layout_of,
)
from frostline.schedules.gradual_unfreeze import slanted_triangle


def layout(blocks: int, *, stem: bool = True):
    """A stem, so many blocks and a head, each one weight."""
    names = [f"block{n}" for n in range(blocks)]
    parts = {name: nn.Linear(2, 2) for name in (["stem"] if stem else []) + names + ["head"]}
    return layout_of(nn.ModuleDict(parts), named=names)


def decisions(schedule, blocks, moments, *, stem=True, **run):
    """What trains after each moment (step, epoch), asked one after another."""
    parts = layout(blocks, stem=stem)
    now = Progress(at="start", layout=parts, trains=parts.names, **run)
    state = schedule.start(now)
    said = []
    trains = parts.names
    for step, epoch in moments:
        at = "start" if not said else "epoch" if epoch else "step"
        now = Progress(at=at, layout=parts, trains=trains, step=step, epoch=epoch, **run)
        decision = schedule.decide(now, {}, state)
        state = decision.state
        trains = trains if decision.train is None else decision.train
        said.append((trains, decision.rates))
    return said


def frozen_blocks(said):
    return [sum(f"block{n}" not in trains for n in range(32)) for trains, _ in said]


def test_alpha_on_twelve_blocks() -> None:
    said = decisions(Alpha(), 12, [(10 * e, e) for e in range(8)])
    assert [n - 20 for n in frozen_blocks(said)] == [0, 4, 7, 9, 10, 11, 11, 12]
    assert ["stem" in trains for trains, _ in said] == [True] + 7 * [False]
    assert all("head" in trains for trains, _ in said)


@pytest.mark.parametrize(
    ("alpha", "counts"),
    [
        pytest.param(1 / 2, [0, 6, 9, 11, 12, 12], id="a half: 6, 9, 10.5, 11.25, 11.6 rounded up"),
        pytest.param(1 / 5, [0, 3, 5, 6, 8, 9], id="a fifth: 2.4, 4.3, 5.9, 7.1, 8.1 rounded up"),
        pytest.param(1.0, [0, 12, 12, 12, 12, 12], id="all at once"),
    ],
)
def test_other_alphas(alpha: float, counts: list[int]) -> None:
    assert Alpha(alpha=alpha).frozen_blocks(12, epochs=5) == counts


def test_ulmfit_thaws_a_group_an_epoch() -> None:
    said = decisions(GradualUnfreeze(slanted=False), 4, [(10 * e, e) for e in range(7)])
    assert [sorted(trains) for trains, _ in said] == [
        ["head"],
        ["block3", "head"],
        ["block2", "block3", "head"],
        ["block1", "block2", "block3", "head"],
        ["block0", "block1", "block2", "block3", "head"],
        ["block0", "block1", "block2", "block3", "head", "stem"],
        ["block0", "block1", "block2", "block3", "head", "stem"],
    ]
    assert said[-1][1] == {
        "head": 1.0,
        "block3": 1 / 2.6,
        "block2": 1 / 2.6**2,
        "block1": 1 / 2.6**3,
        "block0": 1 / 2.6**4,
        "stem": 1 / 2.6**5,
    }


def test_the_slanted_triangle() -> None:
    # cut = 10 of T = 100; up from 1/32 to 1 and down to 1/32 again.
    assert slanted_triangle(0, 100) == 1 / 32
    assert slanted_triangle(1, 100) == (1 + 0.1 * 31) / 32
    assert slanted_triangle(10, 100) == 1.0
    assert slanted_triangle(19, 100) == pytest.approx((1 + 0.9 * 31) / 32)
    assert slanted_triangle(100, 100) == pytest.approx(1 / 32)
    said = decisions(GradualUnfreeze(), 2, [(0, 0), (10, 0)], total_steps=100)
    assert [rates["head"] for _, rates in said] == [1 / 32, 1.0]


def test_freezeout_ends_cubic() -> None:
    # Stem, three blocks, head: l = 0 … 4 of 4, t = (0.8 + 0.2 l / 4) ** 3.
    assert FreezeOut().ends(5) == pytest.approx([0.512, 0.614125, 0.729, 0.857375, 1.0])
    steps = [(step, 0) for step in (0, 511, 512, 614, 615, 728, 729, 857, 858, 999, 1500)]
    said = decisions(FreezeOut(), 3, steps, total_steps=1000)
    assert [5 - len(trains) for trains, _ in said] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert all("head" in trains for trains, _ in said)


def test_freezeout_rates() -> None:
    # lr_l = 0.5 / t_l * (1 + cos(pi t / t_l)), at the start 1 / t_l and halfway 0.5 / t_l.
    said = decisions(FreezeOut(), 3, [(0, 0), (256, 0)], total_steps=1000)
    assert said[0][1] == pytest.approx(
        {"stem": 1 / 0.512, "block0": 1 / 0.614125, "block1": 1 / 0.729,
         "block2": 1 / 0.857375, "head": 1.0}
    )  # fmt: skip
    assert said[1][1]["stem"] == pytest.approx(0.5 / 0.512)
    unscaled = decisions(FreezeOut(scaled=False), 3, [(256, 0)], total_steps=1000)
    assert unscaled[0][1]["stem"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("curve", "ends"),
    [
        ("linear", [0.5, 0.625, 0.75, 0.875, 1.0]),
        ("squared", [0.25, 0.390625, 0.5625, 0.765625, 1.0]),
    ],
)
def test_other_curves_of_freezeout(curve: str, ends: list[float]) -> None:
    assert FreezeOut(first=0.5, curve=curve).ends(5) == ends


@pytest.mark.parametrize(
    ("steps_per_epoch", "blocks", "steps"),
    [
        pytest.param(1600, 20, 80, id="n / (B D)"),
        pytest.param(1000, 32, 50, id="50 at least"),
        pytest.param(10_000, 32, 100, id="100 at most"),
    ],
)
def test_badam_turns(steps_per_epoch: int, blocks: int, steps: int) -> None:
    assert BAdam().turn_length(steps_per_epoch, blocks=blocks) == steps


def test_badam_trains_one_block_and_the_head() -> None:
    schedule = BAdam(steps_per_block=2, order="ascending")
    said = decisions(schedule, 3, [(step, 0) for step in range(10)])
    turns = [(trains - {"head"}) for trains, _ in said]
    assert turns == [
        {"stem"}, {"stem"}, {"block0"}, {"block0"}, {"block1"}, {"block1"}, {"block2"}, {"block2"},
        {"stem"}, {"stem"},
    ]  # fmt: skip
    assert all("head" in trains for trains, _ in said)
    down = decisions(BAdam(steps_per_block=1, order="descending"), 3, [(s, 0) for s in range(4)])
    assert [trains - {"head"} for trains, _ in down] == [
        {"block2"}, {"block1"}, {"block0"}, {"stem"},
    ]  # fmt: skip


def test_badam_visits_each_block_once_a_cycle() -> None:
    blocks = ("a", "b", "c", "d", "e")
    order = [BAdam().block_in_turn(turn, blocks) for turn in range(20)]
    cycles = [order[begin : begin + 5] for begin in range(0, 20, 5)]
    assert all(sorted(cycle) == list(blocks) for cycle in cycles)
    assert len(set(map(tuple, cycles))) > 1
    assert order == [BAdam().block_in_turn(turn, blocks) for turn in range(20)]


def test_lisa_draws_every_five_steps() -> None:
    said = decisions(LISA(layers=2), 8, [(step, 0) for step in range(40)])
    drawn = [frozenset(trains - {"stem", "head"}) for trains, _ in said]
    assert all(len(blocks) == 2 for blocks in drawn)
    assert all({"stem", "head"} <= trains for trains, _ in said)
    changes = [step for step in range(1, 40) if drawn[step] != drawn[step - 1]]
    assert changes
    assert all(step % 5 == 0 for step in changes)
    other = decisions(LISA(layers=2, seed=1), 8, [(step, 0) for step in range(40)])
    assert [t for t, _ in other] != [t for t, _ in said]


def test_lisa_draws_evenly() -> None:
    said = decisions(LISA(layers=2, period=1), 8, [(step, 0) for step in range(2000)])
    counts = [sum(f"block{n}" in trains for trains, _ in said) for n in range(8)]
    assert sum(counts) == 4000
    assert all(420 < count < 580 for count in counts)  # 500 each, by five standard deviations
