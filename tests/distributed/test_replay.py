"""Two ranks, and what is computed once for both: the same losses and weights as without replay."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from ranking import Party
from replaying import LAST_TWO, Pairs, cross_entropy, net
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import frostline as fl
from frostline.replay import HomeSampler, epoch_ends
from frostline.replay.epoch_ends import EpochEnds

SAMPLES, RANKS = 64, 2
Make = Callable[[int], Any]


def dealt(rank: int) -> DataLoader[Any]:
    """Each epoch deals anew."""
    data = Pairs(SAMPLES)
    return DataLoader(data, batch_size=8, sampler=DistributedSampler(data, RANKS, rank, seed=3))


def at_home(rank: int) -> DataLoader[Any]:
    data = Pairs(SAMPLES)
    return DataLoader(data, batch_size=8, sampler=HomeSampler(data, seed=3))


def prepared(rank: int) -> Any:
    """As Accelerate deals: a rank's batch is every other one."""
    from accelerate.data_loader import prepare_data_loader

    return prepare_data_loader(
        DataLoader(Pairs(SAMPLES), batch_size=8, shuffle=True),
        num_processes=RANKS,
        process_index=rank,
        use_seedable_sampler=True,
        data_seed=3,
    )


def train(
    rank: int, make: Make, called: str = "wrapper", *, given: str | None = None, **options: Any
) -> dict[str, Any]:
    """Three epochs.

    Args:
        rank: this rank.
        make: of the loader.
        called: whether the loop calls the ``wrapper`` or the model inside, ``bare``.
        given: which of them replay is given; None: no replay.
        options: for replay, and ``ddp`` for the wrapper.
    """
    model = net(LAST_TWO)
    wrapped: nn.Module = DistributedDataParallel(model, **options.pop("ddp", {}))
    models = {"wrapper": wrapped, "bare": model}
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=1e-2)
    loader = make(rank)
    torch.manual_seed(rank)
    losses, counts = [], []
    for epoch in range(3):
        for dealer in (loader, getattr(loader, "sampler", None)):
            if hasattr(dealer, "set_epoch"):
                dealer.set_epoch(epoch)
                break
        batches: Iterable[Any] = loader
        if given is not None:
            batches = fl.replay(models[given], loader, **options)
        for batch in batches:
            optimizer.zero_grad()
            loss = cross_entropy(models[called], batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        if isinstance(batches, fl.Replay):
            stats = batches.replayer.stats
            counts.append((stats.recorded, stats.replayed, stats.plain))
            declined = batches.replayer.declined
            assert declined is None, declined
    weights = [p.detach().clone() for p in model.parameters()]
    return {"values": [*losses, *weights], "counts": counts}


def both(rank: int, make: Make, **options: Any) -> list[Any]:
    plain = train(rank, make, ddp=options.get("ddp", {}))
    replayed = train(rank, make, **options)
    assert len(plain["values"]) == len(replayed["values"])
    assert all(map(torch.equal, plain["values"], replayed["values"]))
    return replayed["counts"]


FIRST_ALONE = [(4, 0, 0), (4, 4, 0), (4, 8, 0)]
"""Recorded, replayed and plain batches of a rank at the end of each epoch."""


@pytest.mark.parametrize("make", [dealt, prepared], ids=["DistributedSampler", "Accelerate"])
def test_what_a_rank_recorded_another_replays_in_the_next_epoch(
    make: Make, pair: Party, tmp_path: Path
) -> None:
    counts = pair.values(both, make, given="wrapper", store=tmp_path)
    assert counts == [FIRST_ALONE, FIRST_ALONE]


def test_ranks_that_keep_their_samples_need_no_folder(pair: Party) -> None:
    assert pair.values(both, at_home, given="wrapper") == [FIRST_ALONE, FIRST_ALONE]


@pytest.mark.parametrize(
    ("given", "ddp"),
    [
        ("wrapper", {"find_unused_parameters": True}),
        ("bare", {"static_graph": True}),
        ("bare", {"gradient_as_bucket_view": True}),
    ],
    ids=["the wrapper given", "the model given, a static graph", "the model given"],
)
def test_a_model_in_distributed_data_parallel(
    given: str, ddp: dict[str, bool], pair: Party
) -> None:
    assert pair.values(both, at_home, given=given, ddp=ddp) == [FIRST_ALONE, FIRST_ALONE]


def part_wrapped(rank: int) -> str | None:
    model = net(LAST_TWO)
    model.head = DistributedDataParallel(model.head)
    return fl.Replayer(model).declined


def test_a_part_that_is_wrapped_alone_is_declined(pair: Party) -> None:
    for reason in pair.values(part_wrapped):
        assert "head is wrapped in DistributedDataParallel" in reason


def waits_alone(rank: int) -> tuple[list[str], float]:
    ends, start = EpochEnds("an epoch that rank 1 leaves halfway"), time.monotonic()
    if rank == 1:
        return [], 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            ends.reach()
            ends.wait()
    return [str(warning.message) for warning in caught], time.monotonic() - start


def test_a_rank_that_does_not_come_is_waited_for_once(pair: Party) -> None:
    [(told, seconds), _] = pair.values(with_little_patience)
    assert [message[:30] for message in told] == ["other ranks did not come to th"]
    assert seconds < 5


def with_little_patience(rank: int) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(epoch_ends, "_PATIENCE", timedelta(seconds=0.3))
        return waits_alone(rank)
