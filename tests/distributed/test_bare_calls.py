"""fl.freeze and fl.unfreeze by themselves, under a DistributedDataParallel on two ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from parallel_runs import PHASES, adam, bits, loss_of, network
from ranking import Party
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step, rank).backward()
        optimizer.step()


def flags(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]


def thaw_through_wrapper(wrapper: DistributedDataParallel, frozen: fl.Frozen) -> None:
    fl.unfreeze(wrapper, "3.0")


def thaw_inside(wrapper: DistributedDataParallel, frozen: fl.Frozen) -> None:
    fl.unfreeze(wrapper.module, "3.0")


def undo(wrapper: DistributedDataParallel, frozen: fl.Frozen) -> None:
    frozen.undo()


def plan(wrapper: DistributedDataParallel, frozen: fl.Frozen) -> None:
    fl.freeze(wrapper, fl.Plan.parse("frostline: 1\nrules: [{freeze: '**'}, {train: '3.0'}]"))


def resume(wrapper: DistributedDataParallel, frozen: fl.Frozen) -> None:
    other = network()
    fl.resume_freeze(wrapper, fl.freeze(other, fl.glob("[012].[01].*")).state_dict())


def refused(rank: int, thaw: Callable[[Any, Any], None]) -> dict[str, Any]:
    model = network()
    frozen = fl.freeze(model, all_but=fl.glob("4.*"))
    wrapper = DistributedDataParallel(model)
    before = flags(model)
    with pytest.raises(fl.TransitionError) as caught:
        thaw(wrapper, frozen)
    assert flags(model) == before
    train(wrapper, adam(model), rank, 2)
    frozen.verify()
    return {"said": str(caught.value), "bits": bits(model)}


@pytest.mark.parametrize("thaw", [thaw_through_wrapper, thaw_inside, undo, plan, resume])
def test_a_thaw_that_would_drift_is_refused_and_changes_nothing(
    pair: Party, thaw: Callable[[Any, Any], None]
) -> None:
    one, other = pair.values(refused, thaw)
    assert one == other
    assert "can't be thawed under this DistributedDataParallel" in one["said"]
    assert "wrap it anew" in one["said"]


def wrapped_anew(rank: int) -> dict[str, str]:
    """The mend that the refusal names; the first wrapper is garbage that waits to be collected."""
    model = network()
    fl.freeze(model, all_but=fl.glob("4.*"))
    wrapper: Any = DistributedDataParallel(model)
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.02, declare_all=True)
    train(wrapper, optimizer, rank, 2)
    optimizer.zero_grad()
    del wrapper
    fl.unfreeze(model, fl.glob("3.0.*"))
    train(DistributedDataParallel(model), optimizer, rank, 2)
    return bits(model)


def wrapped_while_all_trains(rank: int) -> dict[str, str]:
    """The other mend: the wrapper knows all parameters, and copes with those that rest."""
    model = network()
    optimizer = adam(model)
    wrapper = DistributedDataParallel(model, find_unused_parameters=True)
    fl.freeze(wrapper, all_but=fl.glob("4.*"))
    train(wrapper, optimizer, rank, 2)
    optimizer.zero_grad()
    fl.unfreeze(model, fl.glob("3.0.*"))
    train(wrapper, optimizer, rank, 2)
    return bits(model)


@pytest.mark.parametrize("mended", [wrapped_anew, wrapped_while_all_trains])
def test_both_mends_keep_the_ranks_equal(pair: Party, mended: Callable[[int], Any]) -> None:
    one, other = pair.values(mended)
    assert one == other
    assert one["3.0.weight"] != bits(network())["3.0.weight"]


def findings(rank: int) -> list[tuple[str, str]]:
    """Flags set by hand, where nothing refuses; the model is looked at without its wrapper."""
    model = network()
    model[0].requires_grad_(False)
    wrapper = DistributedDataParallel(model)
    model[0][0].bias.requires_grad_(True)
    model[4].bias.requires_grad_(False)
    found = [(finding.code, finding.where) for finding in fl.check(model)]
    assert found == [(finding.code, finding.where) for finding in fl.check(wrapper)]
    return [pair for pair in found if pair[0].startswith("FL6")]


def test_check_sees_the_wrapper_around_a_model(pair: Party) -> None:
    expected = [("FL601", "0.0.bias"), ("FL602", "4.bias")]
    assert pair.values(findings) == [expected, expected]


def guarded(rank: int) -> str:
    """A freezer's phases under a guard; then one rank writes what is frozen, in the last step."""
    model = network()
    optimizer = adam(model)
    freezer = fl.Freezer(DistributedDataParallel(model), optimizer, schedule=PHASES)
    try:
        with fl.guard(freezer.model, optimizer, every=1):
            for step in range(7):
                optimizer.zero_grad()
                loss_of(freezer.model, step, rank).backward()
                if (rank, step) == (1, 6):
                    model[2][0].weight.data.add_(1)
                optimizer.step()
                freezer.step()
    except fl.GuardError as error:
        return error.violations[0].name
    return "nothing"


def test_a_guard_speaks_on_the_rank_where_it_happened(pair: Party) -> None:
    assert pair.values(guarded) == ["nothing", "2.0.weight"]
