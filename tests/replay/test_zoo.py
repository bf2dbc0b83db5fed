"""Replay over the zoo: identical, declined or reported as rounding; never silently different.

The verdicts come from two processes of their own, so the tests wait for them in order. One setting
of each convolutional net and of every second transformer is quick; the rest are slow tests. The
table, while working on replay: ``PYTHONPATH=tests python -m replay_zoo``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

pytest.importorskip("transformers")

from replay_zoo import CONVNETS, NASTY, SETTINGS, TRANSFORMERS
from replay_zoo.judge import judged, repeated
from replay_zoo.settings import Setting, Verdict

# A broken pool of processes must not hang; the slowest setting takes seconds.
pytestmark = pytest.mark.timeout(600)


def _quick(settings: list[Setting]) -> set[str]:
    """One cut of each architecture: the head alone, the last block, the upper half, in turn."""
    cuts: dict[str, list[str]] = {}
    for setting in settings:
        cuts.setdefault(setting.architecture, []).append(setting.name)
    return {names[turn % len(names)] for turn, names in enumerate(cuts.values())}


_EVERYDAY = [*TRANSFORMERS, *CONVNETS]
# Of the many transformers every second one, so that `make test` stays short.
_FEWER = set(sorted({setting.architecture for setting in TRANSFORMERS})[::2])
_QUICK = _quick([s for s in _EVERYDAY if s in CONVNETS or s.architecture in _FEWER])
_QUICK |= {setting.name for setting in NASTY}
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def _cases(settings: list[Setting]) -> list[object]:
    return [
        pytest.param(s.name, id=s.name, marks=[] if s.name in _QUICK else [pytest.mark.slow])
        for s in settings
    ]


def _asked(request: pytest.FixtureRequest, test: str) -> list[str]:
    """The names for which this run collected the test, in its order."""
    return [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == test
    ]


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Verdict]]]:
    with judged(_asked(request, "test_replay_is_identical_or_says_why_not")) as futures:
        yield futures


@pytest.fixture(scope="module")
def repetitions(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Verdict]]]:
    with repeated(_asked(request, "test_two_plain_runs_are_the_same")) as futures:
        yield futures


@pytest.mark.parametrize("name", _cases(SETTINGS))
def test_replay_is_identical_or_says_why_not(
    name: str, verdicts: dict[str, Future[Verdict]]
) -> None:
    verdict = verdicts[name].result()
    assert verdict.ruling in _BY_NAME[name].expects, verdict
    assert verdict.ruling == "identical" or verdict.why, verdict
    # What was written past autograd is told of, and may be.
    assert not [w for w in verdict.warned if "was rewritten since the last round" not in w]


def test_nearly_all_models_of_every_day_replay_with_the_same_bits(
    verdicts: dict[str, Future[Verdict]],
) -> None:
    judged_ones = [verdicts[s.name].result() for s in _EVERYDAY if s.name in verdicts]
    if len(judged_ones) < len(_QUICK) - len(NASTY):
        pytest.skip("only a part of the zoo was asked for")
    others = {v.name: f"{v.ruling}: {v.why}" for v in judged_ones if v.ruling != "identical"}
    assert len(others) <= 0.05 * len(judged_ones), others


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(s.name, id=s.name) for s in SETTINGS])
def test_two_plain_runs_are_the_same(name: str, repetitions: dict[str, Future[Verdict]]) -> None:
    repetition = repetitions[name].result()
    assert repetition.ruling == "identical", repetition.why


def test_the_zoo_is_as_large_as_it_claims_to_be() -> None:
    assert len({s.architecture for s in TRANSFORMERS}) >= 60
    assert len({s.architecture for s in CONVNETS}) >= 20
    assert len(NASTY) >= 40
    assert all(s.nasty for s in NASTY)
    assert not [name for name, count in Counter(s.name for s in SETTINGS).items() if count > 1]
    assert all(re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", s.name) for s in SETTINGS)
