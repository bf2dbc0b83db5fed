"""Mixtures of two batches, and what comparing them shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from frostline.replay.liveness import Exclusions
from frostline.replay.regroup import Recorded, judge_output, mixed, shifts
from frostline.replay.runner import TopLevel

NET = nn.Identity()


def recorded(ids: tuple[int, ...], *args: Any, **kwargs: Any) -> Recorded:
    call = TopLevel(model=NET, name="", module=NET, forward=NET.forward, args=args, kwargs=kwargs)
    return Recorded(call, ids)


def named(*ids: int) -> Recorded:
    """A batch whose rows are its samples' numbers."""
    return recorded(ids, torch.tensor(ids)[:, None].expand(-1, 3))


def rows(batch: Recorded | None) -> list[int]:
    assert batch is not None
    (tensor,) = batch.call.args
    assert bool((tensor == tensor[:, :1]).all())
    return [int(row) for row in tensor[:, 0]]


@pytest.mark.parametrize("samples", [2, 3, 4, 5, 8, 13])
def test_every_sample_moves_to_another_place(samples: int) -> None:
    one, other = range(samples), range(100, 100 + samples)
    seen: list[set[int]] = [set() for _ in range(samples)]
    for shift in shifts(samples):
        batch = mixed(named(*one), named(*other), shift=shift)
        assert batch is not None
        # Names and rows go together, no sample twice.
        assert rows(batch) == list(batch.ids)
        assert len(set(batch.ids)) == samples
        for place, name in enumerate(batch.ids):
            assert name % 100 != place
            seen[place].add(name)
        # Half of each batch.
        of_other = sum(name >= 100 for name in batch.ids)
        assert of_other in (samples // 2, (samples + 1) // 2)
    assert all(len(names) == samples - 1 for names in seen)


def test_a_mixture() -> None:
    batch = mixed(named(0, 1, 2, 3), named(10, 11, 12, 13), shift=2)
    assert rows(batch) == [2, 13, 0, 11]
    batch = mixed(named(0, 1, 2, 3), named(10, 11, 12, 13), shift=1)
    assert rows(batch) == [11, 2, 13, 0]


def test_a_single_sample_is_the_other_batchs() -> None:
    assert rows(mixed(named(0), named(10), shift=1)) == [10]


def test_the_recorded_batches_stay() -> None:
    one, other = named(0, 1), named(10, 11)
    mixed(one, other, shift=1)
    assert (rows(one), rows(other)) == ([0, 1], [10, 11])


def test_all_tensors_that_have_rows_are_mixed_alike() -> None:
    def batch(start: int) -> Recorded:
        numbers = torch.arange(start, start + 4)
        return recorded(
            tuple(numbers.tolist()),
            numbers,
            {"held": [numbers * 2]},
            torch.full((3, 2), start),
            torch.tensor(start),
            option=numbers.float(),
            flag="on",
        )

    made = mixed(batch(0), batch(10), shift=2)
    assert made is not None
    plain, held, other, scalar = made.call.args
    assert list(made.ids) == plain.tolist() == [2, 13, 0, 11]
    assert held["held"][0].tolist() == [4, 26, 0, 22]
    assert made.call.kwargs["option"].tolist() == [2.0, 13.0, 0.0, 11.0]
    assert made.call.kwargs["flag"] == "on"
    # What has no rows is one batch's.
    assert (other.unique().tolist(), int(scalar)) == ([0], 0)


UNFIT: dict[str, tuple[Tensor, Tensor]] = {
    "shape": (torch.zeros(2, 3), torch.zeros(2, 4)),
    "dtype": (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)),
    "of-what-is-not-cut": (torch.zeros(5), torch.zeros(6)),
}


@pytest.mark.parametrize("name", UNFIT)
def test_batches_that_do_not_fit(name: str) -> None:
    one, other = UNFIT[name]
    assert mixed(recorded((0, 1), one), recorded((2, 3), other), shift=1) is None


SHIFTS = {
    1: [1],
    2: [1],
    3: [1, 2],
    4: [2, 3, 1],
    5: [2, 4, 3, 1],
    8: [4, 6, 2, 5, 7, 1, 3],
}


@pytest.mark.parametrize("samples", SHIFTS)
def test_shifts(samples: int) -> None:
    assert shifts(samples) == SHIFTS[samples]


@given(samples=st.integers(2, 40))
def test_every_sample_comes_to_the_end(samples: int) -> None:
    """Kernels treat the last rows in another way."""
    last: set[int] = set()
    for shift in shifts(samples):
        batch = mixed(named(*range(samples)), named(*range(100, 100 + samples)), shift=shift)
        assert batch is not None
        last.add(batch.ids[-1] % 100)
    assert last == set(range(samples - 1))


def plan(*mutating: int) -> Any:
    stations = [
        SimpleNamespace(planned=SimpleNamespace(index=index, mutates=index in mutating))
        for index in range(3)
    ]
    return SimpleNamespace(stations=stations, keeps_parts=False)


def test_the_same_output() -> None:
    exclusions = Exclusions()
    verdict = judge_output(plan(1), {"a": torch.ones(2)}, {"a": torch.ones(2)}, exclusions)
    assert (verdict.holds, exclusions) == (True, Exclusions())


DIFFERING: dict[str, tuple[Any, Any]] = {
    "value": (torch.zeros(2), torch.tensor([0.0, 1e-30])),
    "sign-of-zero": (torch.zeros(1), -torch.zeros(1)),
    "gradient": (torch.ones(1), torch.ones(1).requires_grad_()),
    "form": ((torch.ones(1), 1), (torch.ones(1), 2)),
    "number-of-tensors": ((torch.ones(1),), (torch.ones(1), torch.ones(1))),
    "shape": (torch.ones(2), torch.ones(2, 1)),
}


@pytest.mark.parametrize("name", DIFFERING)
def test_another_output(name: str) -> None:
    exclusions = Exclusions()
    verdict = judge_output(plan(), *DIFFERING[name], exclusions)
    assert (verdict.holds, verdict.exclusions, exclusions) == (False, False, Exclusions())
    assert verdict.why is not None
    assert "gave another output than a computed one" in verdict.why


def test_who_writes_in_place_is_suspected_first() -> None:
    exclusions = Exclusions()
    verdict = judge_output(plan(0, 2), torch.zeros(1), torch.ones(1), exclusions)
    assert (verdict.holds, verdict.exclusions, verdict.why) == (False, True, None)
    why = "it writes into what another module returned"
    assert exclusions.split == {0: why, 2: why}


def test_rounding_may_be_accepted() -> None:
    one, other = torch.ones(4), torch.ones(4) + 1e-6
    assert judge_output(plan(), one, other, Exclusions(accepts_rounding=True)).holds
    assert not judge_output(plan(), one, other + 1e-3, Exclusions(accepts_rounding=True)).holds
