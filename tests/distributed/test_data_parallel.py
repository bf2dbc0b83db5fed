"""Freezing and thawing under DistributedDataParallel: equal on all ranks, and to one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from parallel_runs import PHASES, adam, alone, bits, loss_of, network, together, weights
from ranking import Party
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import frostline as fl

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "static_graph": {"static_graph": True},
    "small buckets": {"bucket_cap_mb": 0.0002},
}


@pytest.mark.parametrize("named", OPTIONS)
def test_every_option_of_the_wrapper_holds_through_all_phases(pair: Party, named: str) -> None:
    one, other = pair.values(together, OPTIONS[named])
    assert one == other
    assert one["bits"] == bits(alone())
    assert one["reduced"] == one["trainable"]
    assert len(set(one["reduced"])) == len(PHASES)
    assert one["frozen_grads"] == 0
    assert one["same wrapper"]
    expected = [value for value in OPTIONS[named].values() if isinstance(value, bool)]
    assert one["options"] == expected


@pytest.mark.parametrize("given", ["bare", "inner", "late"])
def test_the_wrapper_follows_whatever_the_freezer_was_given(pair: Party, given: str) -> None:
    one, other = pair.values(together, given=given)
    assert one == other
    assert one["bits"] == bits(alone())
    assert one["reduced"] == one["trainable"]
    assert one["same wrapper"]


def test_without_a_hook_the_reducer_reduces_by_itself(pair: Party) -> None:
    one, other = pair.values(together, counted=False)
    assert one == other
    assert one["bits"] == bits(alone())


def hooked(rank: int) -> list[str]:
    """One of torch's own hooks, which a wrapper keeps no list of."""
    model = network()
    optimizer = adam(model)
    wrapper = DistributedDataParallel(model)
    wrapper._register_builtin_comm_hook(distributed.BuiltinCommHookType.ALLREDUCE)
    freezer = fl.Freezer(wrapper, optimizer, schedule=PHASES)
    found = []
    for step in range(3):
        optimizer.zero_grad()
        loss_of(wrapper, step, rank).backward()
        optimizer.step()
        freezer.step()
        found.append(wrapper._get_ddp_logging_data()["comm_hook"])
    return [*found, *bits(model).values()]


def test_a_hook_of_torch_s_own_is_kept(pair: Party) -> None:
    one, other = pair.values(hooked)
    assert one == other
    assert len({*one[:3]}) == 1
    assert "ALLREDUCE" in one[0].upper()


def in_a_group(rank: int) -> Any:
    """The first two ranks train; the third has something else to do."""
    group = distributed.new_group([0, 1])
    return None if rank == 2 else together(rank, {"process_group": group}, counted=False)["bits"]


@pytest.mark.slow
def test_ranks_outside_the_wrapper_s_group_are_left_alone(tmp_path: Path) -> None:
    party = Party(tmp_path, size=3, timeout_seconds=30)
    one, other, third = party.values(in_a_group)
    party.close()
    assert one == other == bits(alone())
    assert third is None


@pytest.mark.slow
def test_four_ranks_are_equal_and_near_to_one_process(tmp_path: Path) -> None:
    """Four numbers are added in another order than one process adds them: rounding differs."""
    party = Party(tmp_path, size=4)
    first, *others = party.values(together)
    party.close()
    assert all(other == first for other in others)
    assert first["reduced"] == first["trainable"]
    assert first["weights"] == pytest.approx(weights(alone(ranks=4)), rel=1e-3, abs=1e-6)
