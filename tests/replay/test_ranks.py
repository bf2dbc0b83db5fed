"""Two processes that train on shares of the data, one folder: what one has recorded both replay."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replaying import LAST_TWO, Pairs, assert_same, cross_entropy, net, run, steps
from storing import fork, succeeded
from torch import Tensor, distributed
from torch.testing._internal.distributed import fake_pg  # noqa: F401 (it adds the backend "fake")
from torch.utils.data import DataLoader, DistributedSampler

import frostline as fl
from frostline.replay import ReplayStats
from frostline.replay.epoch_ends import EpochEnds


class _Rank:
    """One of two processes that train with replay and without; they wait for each other by files.

    No process group is needed for that.
    """

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank, self.folder = rank, folder
        self.told: list[tuple[int, int]] = []

    def wait(self, name: str) -> None:
        (self.folder / f"{name}-{self.rank}").touch()
        deadline = time.monotonic() + 60
        while not (self.folder / f"{name}-{1 - self.rank}").exists():
            assert time.monotonic() < deadline, name
            time.sleep(0.01)

    def loader(self) -> DataLoader[Any]:
        data = Pairs(80)
        sampler = DistributedSampler(data, 2, self.rank, seed=3)
        return DataLoader(data, batch_size=8, sampler=sampler)

    def loop(self, model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for epoch in range(4):
            loader.sampler.set_epoch(epoch)
            yield from steps(model, optimizer, loader, batches, epochs=1)
            replayer = getattr(batches(loader), "replayer", None)
            if replayer is not None:
                self.told.append((replayer.stats.recorded, replayer.stats.replayed))
                self.wait(f"epoch{len(self.told)}")
                time.sleep(1.1)  # a store looks for what others wrote once a second

    def work(self) -> None:
        plain = run(lambda: net(LAST_TWO), self.loader, self.loop, replayed=False)
        for _ in range(2):
            done = run(
                lambda: net(LAST_TWO),
                self.loader,
                self.loop,
                replayed=True,
                store=self.folder / "features",
            )
            assert_same(plain, done)
            assert done.replayer.declined is None
        (self.folder / f"told-{self.rank}").write_text(json.dumps(self.told))


@pytest.mark.slow
def test_a_sample_recorded_by_one_rank_is_replayed_by_the_other(tmp_path: Path) -> None:
    ranks = [fork(_Rank(rank, tmp_path).work) for rank in range(2)]
    assert [succeeded(pid) for pid in ranks] == [True, True]
    for rank in range(2):
        first, second, third, fourth, *next_run = json.loads(
            (tmp_path / f"told-{rank}").read_text()
        )
        assert first == [5, 0]
        # The samples of the second epoch are in part the other rank's of the first.
        assert second[1] >= 2
        assert sum(third) == 15
        assert fourth[0] <= 7
        assert fourth[1] >= 13
        # Two batches prove what the next run has found.
        assert next_run[0] == [2, 3]
        assert next_run[3] == [2, 18]


@pytest.mark.parametrize("store", ["memory", "folder"])
def test_a_distributed_sampler(store: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {} if store == "memory" else {"store": tmp_path}

    def loader(rank: int) -> Any:
        def make() -> DataLoader[Any]:
            data = Pairs(84)
            sampler = DistributedSampler(data, 2, rank, seed=3, drop_last=True)
            return DataLoader(data, batch_size=6, sampler=sampler)

        return make

    def loop(model: Any, optimizer: Any, given: Any, batches: Any) -> Any:
        for epoch in range(6):
            given.sampler.set_epoch(epoch)
            yield from steps(model, optimizer, given, batches, epochs=1)

    for rank in range(2):
        plain = run(lambda: net(LAST_TWO), loader(rank), loop, replayed=False)
        done = run(lambda: net(LAST_TWO), loader(rank), loop, replayed=True, **options)
        assert_same(plain, done)
        assert done.counts[2] == 0
        # Half of the samples are new in the second epoch, unless the other rank went before.
        assert done.counts[1] >= (30 if rank and store == "folder" else 12)


def test_two_models_of_the_same_weights_write_to_one_folder(tmp_path: Path) -> None:
    """Each epoch is written out: what one has recorded the other finds without being made anew."""
    data = Pairs(80)
    models = [net(LAST_TWO).eval() for _ in range(2)]

    def replayed(model: Any, order: range) -> ReplayStats:
        replay = fl.replay(model, DataLoader(data, batch_size=8, sampler=order), tmp_path)
        for batch in replay:
            cross_entropy(model, batch)
        return replay.replayer.stats

    for half, model in enumerate(models):
        assert replayed(model, range(40 * half, 40 * half + 40)).recorded == 5
    time.sleep(1.1)  # a store looks for what others wrote once a second
    for model in models:
        stats = replayed(model, range(80))
        assert (stats.recorded, stats.replayed, stats.plain) == (5, 10, 0)


def test_an_epoch_that_begins_when_the_process_group_is_gone() -> None:
    """A script ends its group after training, and goes on alone."""
    ends = EpochEnds("a data set of 80")
    store = distributed.HashStore()
    distributed.init_process_group("fake", store=store, rank=0, world_size=2)
    try:
        ends.reach()
    finally:
        distributed.destroy_process_group()
    ends.wait()
