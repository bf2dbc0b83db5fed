"""Which fields of which batches need not be loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from frostline.replay.audits import Audits
from frostline.replay.graph import Graph
from frostline.replay.kinds import Kind
from frostline.replay.liveness import Exclusions
from frostline.replay.readiness import Readiness

IDS = (1, 2)


class Never(Audits):
    """Nothing is compared."""

    def is_due(self, number: int) -> bool:
        return False


def kind(
    paths: dict[int, str] | None = None,
    needed: tuple[bool, ...] = (False,),
    *,
    proofs: int = 1,
    known: tuple[int, ...] = IDS,
) -> Kind:
    made = Kind(graph=Graph(), exclusions=Exclusions())
    plan: Any = SimpleNamespace(proofs=proofs, cut=SimpleNamespace(needed_inputs=needed))
    made.plan = plan
    made.paths = {0: "0"} if paths is None else paths
    made.remembered = {name: [b""] for name in known}
    return made


def without_plan() -> Kind:
    made = kind()
    made.give_up("it does not matter")
    return made


def readiness(*kinds: Kind, audits: Audits | None = None) -> Readiness:
    """After a batch in which these kinds of pass were made."""
    made = Readiness(audits or Never(0.0))
    made.is_confirmed = True
    for one in kinds:
        made.note(one)
    made.end_batch(is_usual=True)
    return made


def spoilt(path: str) -> Kind:
    made = kind()
    made.other_inputs = {path}
    return made


BOTH = {0: "x", 1: "y"}

UNNEEDED: dict[str, tuple[list[Kind], set[str]]] = {
    "nothing-known": ([], set()),
    "its-input": ([kind()], {"0"}),
    "one-of-two": ([kind(BOTH, (False, True))], {"x"}),
    "all-needed": ([kind(BOTH, (True, True))], set()),
    "needed-by-another-pass": ([kind(BOTH, (False, False)), kind({0: "y"}, (True,))], {"x"}),
    "fields-of-both-passes": ([kind({0: "x"}), kind({0: "y"})], {"x", "y"}),
    "a-pass-without-plan": ([kind(), without_plan()], set()),
    "no-field": ([kind({})], set()),
    "something-else-in-its-place": ([spoilt("0")], set()),
    "something-else-in-anothers": ([spoilt("1")], {"0"}),
}


@pytest.mark.parametrize("name", UNNEEDED)
def test_unneeded_fields(name: str) -> None:
    kinds, paths = UNNEEDED[name]
    assert readiness(*kinds).unneeded_fields == paths


READY: dict[str, tuple[list[Kind], bool]] = {
    "nothing-known": ([], False),
    "known": ([kind()], True),
    "not-proven": ([kind(proofs=0)], False),
    "a-sample-is-not-known": ([kind(known=(1,))], False),
    "known-to-one-pass-alone": ([kind(), kind(known=(1, 3))], False),
    "known-to-both": ([kind(), kind(known=(1, 2, 3))], True),
    "a-pass-without-plan": ([kind(), without_plan()], False),
}


@pytest.mark.parametrize("name", READY)
def test_ready(name: str) -> None:
    kinds, is_ready = READY[name]
    assert readiness(*kinds).is_ready(IDS) is is_ready


def test_turned_off() -> None:
    made = readiness(kind())
    made.is_off = True
    assert not made.is_ready(IDS)


def test_none_is_skipped_until_one_was_loaded_again() -> None:
    made = readiness(kind())
    made.is_confirmed = False
    assert [made.is_ready(IDS), made.is_to_be_audited(IDS)] == [False, True]
    assert [made.is_ready(IDS), made.is_to_be_audited(IDS)] == [False, True]
    made.is_confirmed = True
    assert [made.is_ready(IDS), made.is_to_be_audited(IDS)] == [True, False]


def test_some_are_loaded_to_be_compared() -> None:
    made = readiness(kind(known=tuple(range(20))), audits=Audits(0.0))
    ready = [made.is_ready((number,)) for number in range(1, 10)]
    # The 1st and the 8th.
    assert ready == [False, True, True, True, True, True, True, False, True]
    assert [made.is_to_be_audited((number,)) for number in range(1, 10)] == [
        not one for one in ready
    ]
    assert not made.is_to_be_audited((1,))  # once


def test_what_is_not_known_does_not_count_as_asked() -> None:
    made = readiness(kind(known=(1, 2)), audits=Audits(0.0))
    assert not made.is_ready((7,))
    assert not made.is_to_be_audited((7,))
    assert not made.is_ready((1,))
    assert made.is_to_be_audited((1,))


def test_the_last_usual_batch_tells() -> None:
    first, second = kind({0: "x"}), kind({0: "y"})
    made = readiness(first)
    made.note(second)
    assert made.unneeded_fields == {"x"}
    made.end_batch(is_usual=False)
    assert made.unneeded_fields == {"x"}
    made.end_batch(is_usual=True)  # nothing was called: an evaluation, say
    assert made.unneeded_fields == {"x"}
    made.note(second)
    made.note(second)
    made.end_batch(is_usual=True)
    assert made.unneeded_fields == {"y"}


def test_forgotten() -> None:
    made = readiness(kind())
    made.note(kind({0: "y"}))
    made.forget()
    assert made.unneeded_fields == frozenset()
    assert not made.is_ready(IDS)
    made.end_batch(is_usual=True)
    assert made.unneeded_fields == frozenset()
