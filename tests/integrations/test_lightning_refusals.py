"""What the Lightning callback refuses, and what it says then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from framework_jobs import HEAD, Network, Samples
from framework_lightning import Learner, make_trainer, quietly
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset

import frostline as fl
from frostline.integrations.lightning import FrostlineCallback
from frostline.integrations.lightning.callback import refuse_forgetful_ddp
from frostline.integrations.lightning.loading import NotedLoader

EXPLICIT = [{"epoch": 0, "train": ["head"]}]


def fit(callback: FrostlineCallback | None, out: Path, loader: Any = None, **options: Any) -> Any:
    learner = options.pop("learner", None) or Learner(Network())
    trainer = make_trainer(out, [callback] if callback else [], max_epochs=1)
    with quietly():
        trainer.fit(
            learner,
            DataLoader(Samples(), 8) if loader is None else loader,
            weights_only=False,
            **options,
        )
    return trainer


def test_nothing_to_freeze(tmp_path: Path) -> None:
    with pytest.raises(fl.PlanError, match="neither a plan nor a schedule"):
        fit(FrostlineCallback(), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"plan": "missing.yaml"}, fl.PlanError, r"missing\.yaml"),
        ({"plan": {"rules": []}}, fl.PlanError, "frostline: 1"),
        ({"schedule": "gradul-unfreeze"}, fl.ScheduleError, "gradual-unfreeze"),
    ],
    ids=["no-such-file", "no-version", "no-such-schedule"],
)
def test_arguments_are_read_at_once(
    arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        FrostlineCallback(**arguments)


@pytest.mark.parametrize(
    ("saved_with", "loaded_with", "error", "match"),
    [
        ({}, {"plan": HEAD}, fl.PlanError, "saved without FrostlineCallback"),
        ({"plan": HEAD}, {"plan": fl.Plan.all_but("head")}, fl.PlanError, r"blocks\.2"),
        ({"plan": "stem"}, {"plan": "stem", "schedule": EXPLICIT}, fl.ScheduleError, "schedule"),
        ({"schedule": EXPLICIT}, {"schedule": "lisa"}, fl.ScheduleError, "'explicit'"),
    ],
    ids=["bare", "other-plan", "no-schedule", "other-schedule"],
)
def test_checkpoints_of_other_runs(
    saved_with: dict[str, Any],
    loaded_with: dict[str, Any],
    error: type[Exception],
    match: str,
    tmp_path: Path,
) -> None:
    trainer = fit(FrostlineCallback(**saved_with) if saved_with else None, tmp_path)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    with pytest.raises(error, match=match):
        fit(FrostlineCallback(**loaded_with), tmp_path, ckpt_path=tmp_path / "it.ckpt")


def test_a_checkpoint_whose_frozen_weights_were_altered(tmp_path: Path) -> None:
    trainer = fit(FrostlineCallback(plan=HEAD), tmp_path)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    content = torch.load(tmp_path / "it.ckpt", weights_only=False)
    content["state_dict"]["net.stem.bias"].add_(1)
    torch.save(content, tmp_path / "it.ckpt")
    with pytest.raises(fl.PlanError, match=r"net\.stem\.bias has not the content"):
        fit(FrostlineCallback(plan=HEAD), tmp_path, ckpt_path=tmp_path / "it.ckpt")


class Streamed(IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        samples = Samples()
        return (samples[index] for index in range(len(samples)))


def test_replay_of_samples_without_numbers(tmp_path: Path) -> None:
    with pytest.raises(fl.ReplayError, match="IterableDataset"):
        fit(FrostlineCallback(plan=HEAD, replay=True), tmp_path, DataLoader(Streamed(), 8))


def test_replay_of_several_loaders(tmp_path: Path) -> None:
    class Both(Learner):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            return super().training_step(batch["a"], batch_idx)

    loaders = {"a": DataLoader(Samples(), 8), "b": DataLoader(Samples(), 8)}
    with pytest.raises(fl.ReplayError, match="several"):
        fit(FrostlineCallback(plan=HEAD, replay=True), tmp_path, loaders, learner=Both(Network()))


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_replay_of_a_step_that_fetches_by_itself(tmp_path: Path) -> None:
    class Fetching(Learner):
        def training_step(self, dataloader_iter: Iterator[Any]) -> Tensor:  # type: ignore[override]
            batch, index, _ = next(dataloader_iter)
            return super().training_step(batch, index)

    learner = Fetching(Network())
    with pytest.raises(fl.ReplayError, match="dataloader_iter"):
        fit(FrostlineCallback(plan=HEAD, replay=True), tmp_path, learner=learner)


def test_what_lightning_sets_on_the_loader_reaches_it() -> None:
    loader = DataLoader(Samples(), 8)
    noted: Any = NotedLoader(loader)
    noted.worker_init_fn = print
    assert loader.worker_init_fn is print
    assert noted.sampler is loader.sampler
    assert not hasattr(noted, "_iterator")


def test_a_schedule_under_a_ddp_that_waits_for_what_froze(tmp_path: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        for wanted in (True, False):
            model = DistributedDataParallel(Network(), find_unused_parameters=wanted)
            trainer: Any = SimpleNamespace(strategy=SimpleNamespace(model=model))
            with nullcontext() if wanted else pytest.raises(fl.ScheduleError, match="strategy="):
                refuse_forgetful_ddp(trainer)
    finally:
        distributed.destroy_process_group()
