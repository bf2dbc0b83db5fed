from __future__ import annotations

import gc
import time

import pytest

from frostline.measure import StepTime, step_times
from frostline.measure import timing as timing_module


def span(low: float, median: float, high: float) -> StepTime:
    return StepTime(median_seconds=median, low_seconds=low, high_seconds=high, repeats=9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only a step moves: ``clock[0]`` is the time."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_medians_and_quartiles(clock: list[float]) -> None:
    durations = iter([50.0, 60.0, 1.0, 2.0, 3.0, 4.0, 1000.0])

    def step() -> None:
        clock[0] += next(durations)

    times = step_times({"a": step}, warmup=2, repeats=5)
    # The two warm-up calls are out, and one interruption moves no quartile.
    assert times == {
        "a": StepTime(median_seconds=3.0, low_seconds=2.0, high_seconds=4.0, repeats=5)
    }


def test_one_repeat_is_its_own_quartile(clock: list[float]) -> None:
    def step() -> None:
        clock[0] += 2.0

    assert step_times({"a": step}, warmup=0, repeats=1) == {
        "a": StepTime(median_seconds=2.0, low_seconds=2.0, high_seconds=2.0, repeats=1)
    }


@pytest.mark.parametrize(
    ("patience", "repeats", "timed"),
    [
        pytest.param(1.0, 30, 3, id="never-fewer-than-three"),
        pytest.param(16.0, 30, 6, id="no-round-is-begun-too-late"),
        pytest.param(16.0, 4, 4, id="done-before"),
        pytest.param(1.0, 2, 2, id="as-few-as-asked-for"),
    ],
)
def test_patience(clock: list[float], patience: float, repeats: int, timed: int) -> None:
    def step() -> None:
        clock[0] += 2.0

    times = step_times({"a": step}, warmup=2, repeats=repeats, patience_seconds=patience)
    assert times["a"].repeats == timed


def test_steps_take_turns_and_no_one_is_always_first() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = step_times(steps, warmup=1, repeats=3)
    assert "".join(calls) == "abcbcacababc"
    assert list(times) == ["a", "b", "c"]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_rests_and_is_put_back(enabled: bool) -> None:
    during: list[bool] = []
    (gc.enable if enabled else gc.disable)()
    try:
        step_times({"a": lambda: during.append(gc.isenabled())}, warmup=1, repeats=1)
        assert during == [False, False]
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_a_step_that_fails_leaves_the_garbage_collector_on() -> None:
    def step() -> None:
        raise KeyError("step")

    with pytest.raises(KeyError):
        step_times({"a": step})
    assert gc.isenabled()


def test_queued_work_is_waited_for_before_and_after(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, where a call returns before its work is done."""
    queued: list[float] = [7.0]  # left over from earlier, not this step's

    def finish() -> None:
        clock[0] += sum(queued)
        queued.clear()

    monkeypatch.setattr(timing_module, "_finish_queued_work", finish)
    times = step_times({"a": lambda: queued.append(3.0)}, warmup=0, repeats=2)
    assert times["a"].median_seconds == 3.0


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        pytest.param(span(1, 2, 3), span(2, 4, 5), True, id="crossing"),
        pytest.param(span(1, 2, 3), span(3, 4, 5), True, id="touching"),
        pytest.param(span(1, 2, 9), span(4, 5, 6), True, id="inside"),
        pytest.param(span(1, 2, 3), span(4, 5, 6), False, id="apart"),
    ],
)
def test_overlaps(one: StepTime, other: StepTime, overlap: bool) -> None:
    assert one.overlaps(other) is overlap
    assert other.overlaps(one) is overlap
