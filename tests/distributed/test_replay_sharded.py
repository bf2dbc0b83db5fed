"""Models that ``fully_shard`` has sharded over two ranks, replayed in step."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ranking import Party
from replaying import HEAD, LAST_TWO, Net, Pairs, net
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, DistributedSampler
from torch.utils.data import default_collate as collate

import frostline as fl
from frostline.errors import ReplayError
from frostline.measure import sharded_step
from frostline.replay import HomeSampler
from frostline.shards import local_part

SAMPLES, RANKS = 64, 2
STEPS = SAMPLES // RANKS // 8
"""Of an epoch."""
BLOCKS = tuple(f"blocks.{index}" for index in range(4))
Bits = list[Tensor]


class Traffic(TorchDispatchMode):
    """Counts the bytes that come out of gatherings."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if "allgather_base" in str(func):
            self.gathered += args[0].nbytes
        return func(*args, **(kwargs or {}))


def sharded(model: Net, **options: Any) -> Net:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    logits = model(x).float()
    logits = logits.mean(1) if logits.ndim == 3 else logits
    return nn.functional.cross_entropy(logits, y)


def loss_of_two(model: nn.Module, batch: Any) -> Tensor:
    """Two passes before one backward: dropout makes them differ."""
    return loss_of(model, batch) + loss_of(model, batch)


def of_two_lengths(rows: list[Any]) -> Any:
    """Batches of which each rank has other ones in a step."""
    x, y = collate(rows)
    return x.unsqueeze(1).repeat(1, 1 + int(y[0] > 0), 1), y


class Job:
    """One training run; what happens between its epochs is up to the cases.

    Args:
        rank: of this process.
        trains: what does.
        dealt: whether each epoch deals the samples anew, instead of leaving them at home.
        collate_fn: of the loader.
        loss: what is minimised.
        policy: of mixed precision.
        replay: options of replay; None for none.
    """

    def __init__(
        self,
        rank: int,
        *,
        trains: Any = LAST_TWO,
        dealt: bool = False,
        collate_fn: Any = None,
        loss: Any = loss_of,
        policy: dict[str, Any] | None = None,
        replay: dict[str, Any] | None = None,
    ) -> None:
        options = {"mp_policy": MixedPrecisionPolicy(**policy)} if policy is not None else {}
        self.rank = rank
        self.model = sharded(net(trains), **options)
        self.optimizer = fl.optimizer(torch.optim.AdamW, self.model, lr=1e-2)
        data = Pairs(SAMPLES)
        home = HomeSampler(data, seed=3)
        sampler = DistributedSampler(data, seed=3) if dealt else home
        self.loader = DataLoader(data, batch_size=8, sampler=sampler, collate_fn=collate_fn)
        self.held_out = DataLoader(Pairs(16, seed=9), batch_size=8)
        self.replay, self.loss = replay, loss
        self.traffic: list[int] = []
        torch.manual_seed(rank)

    def batches(self, loader: DataLoader[Any]) -> Any:
        if self.replay is None:
            return loader
        return fl.replay(self.model, loader, **self.replay)

    @property
    def counts(self) -> tuple[int, int, int]:
        replayer = self.batches(self.loader).replayer
        assert replayer.declined is None, replayer.declined
        return replayer.stats.recorded, replayer.stats.replayed, replayer.stats.plain

    def epoch(self, number: int) -> Iterator[Tensor]:
        self.loader.sampler.set_epoch(number)
        self.model.train()
        for batch in self.batches(self.loader):
            self.optimizer.zero_grad()
            with Traffic() as traffic:
                loss = self.loss(self.model, batch)
                loss.backward()
            self.optimizer.step()
            self.traffic.append(traffic.gathered)
            yield loss.detach()

    def weights(self) -> Bits:
        return [p.full_tensor().detach() for p in self.model.parameters()]


def nothing(job: Job, number: int) -> Bits:
    return []


def evaluates(job: Job, number: int) -> Bits:
    """With replay and without, in the same mode of gradients and another."""
    job.model.eval()
    with torch.no_grad():
        first = [loss_of(job.model, batch) for batch in job.batches(job.held_out)]
        return [*first, *(loss_of(job.model, batch) for batch in job.held_out)]


def freezes_and_thaws(job: Job, number: int) -> Bits:
    job.optimizer.zero_grad()
    if number == 1:
        fl.freeze(job.model, "blocks.2")
    if number == 3:
        fl.unfreeze(job.model, "blocks.[12].**")
    fl.sync(job.model, job.optimizer)
    return []


def one_rank_writes(job: Job, number: int) -> Bits:
    """Into its part of a frozen tensor: what all ranks have recorded holds no longer."""
    if number == 2 and job.rank == 1:
        with torch.no_grad():
            local_part(job.model.blocks[0].fc1.weight).mul_(1.5)
    return []


def run(rank: int, *, between: Any = nothing, epochs: int = 3, **options: Any) -> tuple[Job, Bits]:
    job, found = Job(rank, **options), []
    for number in range(epochs):
        found += [*between(job, number), *job.epoch(number)]
    return job, found + job.weights()


def both(rank: int, **options: Any) -> tuple[tuple[int, int, int], list[int]]:
    """What was counted and gathered, if losses and weights are those of a run without replay."""
    replay = options.pop("replay", {})
    _, plain = run(rank, **options)
    job, replayed = run(rank, **options, replay=replay)
    assert len(plain) == len(replayed)
    assert all(map(torch.equal, plain, replayed))
    return job.counts, job.traffic


def foretell(trains: Any, skip: int) -> int:
    """Bytes that a step gathers, with the first blocks left out."""
    return sharded_step(
        net(trains),
        collate([Pairs(8)[index] for index in range(8)]),
        loss_of,
        optimizer=partial(fl.optimizer, torch.optim.AdamW, lr=1e-2),
        blocks=BLOCKS,
        ranks=RANKS,
        skip=skip,
    ).gathered_bytes


@pytest.mark.parametrize(
    ("trains", "skip"), [(HEAD, 4), (LAST_TWO, 2)], ids=["the head", "the last two blocks"]
)
def test_what_is_replayed_is_not_gathered(trains: Any, skip: int, pair: Party) -> None:
    for counts, gathered in pair.values(both, trains=trains):
        assert counts == (STEPS, 2 * STEPS, 0)
        # The second half of the first epoch is recorded without trial passes.
        assert set(gathered[STEPS // 2 : STEPS]) == {foretell(trains, 0)}
        # The first replayed batch is an audit, and so is the eighth.
        assert set(gathered[STEPS + 1 : STEPS + 7]) == {foretell(trains, skip)}


HALF = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}


@pytest.mark.parametrize(
    ("options", "least"),
    [
        pytest.param({"policy": HALF}, 2 * STEPS, id="mixed precision"),
        pytest.param({"dealt": True, "epochs": 8}, 1, id="dealt anew", marks=pytest.mark.slow),
        pytest.param({"collate_fn": of_two_lengths, "epochs": 6}, 1, id="other shapes"),
        pytest.param({"replay": {"budget": 1200}}, 0, id="a full store", marks=pytest.mark.slow),
        pytest.param({"loss": loss_of_two}, 4 * STEPS, id="two passes", marks=pytest.mark.slow),
        pytest.param({"between": evaluates}, 2 * STEPS, id="evaluation", marks=pytest.mark.slow),
        pytest.param({"between": freezes_and_thaws, "epochs": 5}, 1, id="freezing more, thawing"),
        pytest.param({"between": one_rank_writes, "epochs": 4}, 2 * STEPS, id="one rank writes"),
    ],
)
def test_the_same_bits(options: dict[str, Any], least: int, pair: Party) -> None:
    for (_, replayed, _), _ in pair.values(both, **options):
        assert replayed >= least


@pytest.mark.slow
@pytest.mark.parametrize("dealt", [False, True], ids=["at home", "dealt anew"])
def test_four_ranks(dealt: bool, tmp_path: Path) -> None:
    party = Party(tmp_path, size=4)
    try:
        for (_, replayed, _), _ in party.values(both, dealt=dealt, epochs=10):
            assert replayed >= (18 if not dealt else 1)
    finally:
        party.close()


def test_a_second_run_finds_what_the_first_has_recorded(pair: Party, tmp_path: Path) -> None:
    options = {"epochs": 2, "replay": {"store": tmp_path}}
    counts, sizes = [], []
    for _ in range(2):
        counts += [counts for counts, _ in pair.values(both, **options)]
        sizes.append(sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()))
    # The second run's first pass is held against the record; the rest of its first epoch is
    # computed, for ranks can't tell beforehand what they will find.
    assert counts == [(STEPS, STEPS, 0)] * 2 + [(STEPS - 1, STEPS + 1, 0)] * 2
    assert sizes[0] == sizes[1]


def declined(rank: int, kind: str) -> str | None:
    model: nn.Module = net(LAST_TWO)
    mesh = init_device_mesh("cpu", (RANKS,))
    if kind == "FSDP1":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, on every use of FSDP1
            model = FullyShardedDataParallel(
                model, use_orig_params=True, device_id=torch.device("cpu")
            )
    elif kind == "grouped":
        fully_shard(list(model.blocks), mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        parallelize_module(model.blocks[0], mesh, {"fc1": ColwiseParallel()})
    return fl.Replayer(model).declined


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("FSDP1", "is wrapped in FullyShardedDataParallel, whose ranks"),
        ("grouped", "several modules at once"),
        ("tensor parallel", "talk as they run"),
    ],
)
def test_what_can_not_go_in_step_is_declined(kind: str, why: str, pair: Party) -> None:
    assert all(why in reason for reason in pair.values(declined, kind))


class DeepSpeedEngine(nn.Sequential):
    """Told by its name: DeepSpeed is not installed here."""


def test_deepspeed_is_declined() -> None:
    reason = fl.Replayer(DeepSpeedEngine(net(LAST_TWO))).declined
    assert reason is not None
    assert "wrapped in DeepSpeedEngine, whose ranks would have to record and replay" in reason


def skipping_and_evicting(rank: int) -> tuple[str | None, str]:
    job = Job(rank, replay={"inputs": "skip"})
    with pytest.raises(ReplayError) as caught:
        fl.replay(job.model, job.loader, evict=True)
    return job.batches(job.loader).not_skipping, str(caught.value)


def test_options_that_a_sharded_model_can_not_have(pair: Party) -> None:
    for why_all_is_loaded, error in pair.values(skipping_and_evicting):
        assert str(why_all_is_loaded).startswith("ranks of a sharded model go in step")
        assert "evict is not for a model that fully_shard has sharded" in error


class ReadsToken(Net):
    """What says which token is read, replay can't see."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x)[:, int(os.environ["FROSTLINE_TEST_TOKEN"])])


def reads_another_token(rank: int) -> bool:
    torch.manual_seed(0)
    model = ReadsToken()
    fl.freeze(model, all_but=HEAD)
    model = sharded(model)
    data = torch.utils.data.TensorDataset(torch.randn(32, 4, 16), torch.zeros(32))
    loader = DataLoader(data, batch_size=8, sampler=HomeSampler(data, seed=3))
    with pytest.MonkeyPatch.context() as patched:
        for token in "0001":
            patched.setenv("FROSTLINE_TEST_TOKEN", token)
            outputs = [model(x).detach() for x, _ in fl.replay(model, loader)]
        assert fl.replay(model, loader).replayer.stats.replayed >= 4
        return all(map(torch.equal, outputs, [model(x) for x, _ in loader]))


def test_all_of_a_value_is_kept(pair: Party) -> None:
    assert pair.values(reads_another_token) == [True, True]
