"""Ranks that are not about to do the same: all of them raise, and say the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from parallel_runs import adam, loss_of, network
from ranking import Answer, Party
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from frostline.schedules import LISA

LADDER = [{"epoch": 0, "train": ["4"]}, {"step": 2, "train": ["3.0", "4"]}]


def run(
    rank: int,
    *,
    schedule: Any = LADDER,
    before: Callable[[nn.Module, int, int], None] = lambda model, rank, step: None,
    steps: int = 4,
    **options: Any,
) -> list[tuple[str, ...]]:
    model = network()
    optimizer = adam(model)
    freezer = fl.Freezer(DistributedDataParallel(model), optimizer, schedule=schedule, **options)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(freezer.model, step, rank).backward()
        optimizer.step()
        before(freezer.model, rank, step)
        freezer.step()
    freezer.epoch()
    return [row.frozen for row in freezer.timeline()]


def other_seed(rank: int) -> object:
    return run(rank, schedule=LISA(period=1, seed=rank))


def other_length(rank: int) -> object:
    return run(rank, steps_per_epoch=4 + rank)


def frozen_by_hand(rank: int) -> object:
    def freeze(model: nn.Module, rank: int, step: int) -> None:
        if step == 1 and rank == 1:
            model.module[4].bias.requires_grad_(False)

    return run(rank, before=freeze)


def pending(rank: int) -> object:
    def forward(model: nn.Module, rank: int, step: int) -> None:
        if step == 1 and rank == 1:
            loss_of(model.module, step, rank).backward()

    return run(rank, before=forward)


def moved(rank: int) -> object:
    def write(model: nn.Module, rank: int, step: int) -> None:
        if step == 1 and rank == 1:
            model.module[3][0].weight.data.add_(1)

    return run(rank, before=write)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (other_seed, "over the schedule: {'seed': 0} on rank 0, {'seed': 1} on rank 1"),
        (other_length, "over steps_per_epoch: 4 on rank 0, 5 on rank 1"),
        (frozen_by_hand, "over what was frozen before: only rank 1 has 4.bias"),
        (pending, "rank 1 can't: 4.weight has a gradient from a forward after the last"),
        (moved, "rank 1 can't: 1 of 16 frozen tensors changed"),
    ],
)
def test_all_ranks_raise_the_same_and_nothing_hangs(
    pair: Party, work: Callable[[int], object], said: str
) -> None:
    one, other = pair.ask(work)
    assert one == other
    assert one.kind == "TransitionError"
    assert said in one.error


def test_only_transitions_and_epochs_cost_a_collective(pair: Party) -> None:
    """One for the start, one for each transition, and two for an epoch with its metric."""
    expected = {"transitions": 2, "calls": {"all_gather": 4, "broadcast": 1}}
    assert pair.values(counted) == [expected, expected]


def counted(rank: int) -> dict[str, Any]:
    calls: dict[str, int] = {}

    def counting(name: str) -> Callable[..., Any]:
        original = getattr(distributed, name)

        def call(*args: Any, **options: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return original(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_gather", "broadcast", "all_gather_object", "broadcast_object_list"):
            patch.setattr(distributed, name, counting(name))
        frozen = run(rank, steps=6)
    return {"transitions": len(frozen), "calls": calls}


@pytest.fixture
def brief(tmp_path: Path) -> Iterator[Party]:
    """Two ranks that wait for three seconds, and are not needed afterwards."""
    party = Party(tmp_path, timeout_seconds=3)
    yield party
    party.close()


def killed(rank: int) -> object:
    def die(model: nn.Module, rank: int, step: int) -> None:
        if step == 1 and rank == 1:
            os._exit(9)

    return run(rank, before=die)


def test_a_killed_rank_is_named_by_the_others(brief: Party) -> None:
    one, other = brief.ask(killed)
    assert other == Answer(kind="gone")
    assert one.kind == "TransitionError"
    assert one.error.startswith(
        "the transition at step 2: rank 1 (last seen at the transition at step 0) did not come here"
    )


def uneven(rank: int) -> object:
    return run(rank, steps=4 + rank)


@pytest.mark.slow
def test_a_rank_with_more_batches_is_named_by_the_one_that_waits(brief: Party) -> None:
    """The other is inside the backward: its error is torch's own, after the same time."""
    one, other = brief.ask(uneven)
    assert one.kind == "TransitionError"
    assert one.error.startswith(
        "the end of an epoch: rank 1 (last seen at the transition at step 2)"
    )
    assert "other batches" in one.error
    assert other.kind == "RuntimeError"


def alone_at_a_freeze(rank: int) -> list[str]:
    """A bare freeze is nobody else's business: it does not wait for the other rank."""
    wrapper = DistributedDataParallel(network(), find_unused_parameters=True)
    if rank == 0:
        fl.freeze(wrapper, fl.glob("[01].0.*"))
        fl.unfreeze(wrapper, fl.glob("0.0.*"))
    distributed.barrier()
    return [name for name, p in wrapper.module.named_parameters() if not p.requires_grad]


def test_a_bare_freeze_on_one_rank_waits_for_nobody(pair: Party) -> None:
    assert pair.values(alone_at_a_freeze) == [["1.0.weight", "1.0.bias"], []]
