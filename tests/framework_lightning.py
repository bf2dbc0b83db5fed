"""A job, run by Lightning with ``FrostlineCallback``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from framework_jobs import EpochShuffle, Job, Outcome, copied, frozen_names, seeded_model
from torch import Tensor, nn
from torch.utils.data import DataLoader

from frostline.integrations.lightning import FrostlineCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

# Lightning's advice about this machine, and what it uses itself.
_HARMLESS = (
    r".*does not have many workers.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*GPU available but not used.*",
    r".*in eval mode at the start of training.*",
    r".*module\(s\) in eval mode.*",
    r".*You're resuming from a checkpoint that ended before the epoch ended.*",
    r".*You have overridden.*transfer.*",
    r".*`self.trainer` reference.*",
    r".*Starting from v1.9.0, `tensorboardX`.*",
)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings that are Lightning's own."""
    with warnings.catch_warnings():
        for message in _HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        yield


class Learner(pl.LightningModule):
    """Trains a model that gives its own loss; seeds each batch, as checkpoints keep no seeds."""

    def __init__(self, net: nn.Module, *, seed: int = 0) -> None:
        super().__init__()
        self.net = net
        self.seed = seed
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        torch.manual_seed(10_000 * self.seed + 100 * self.current_epoch + batch_idx)
        loss: Tensor = self.net(**batch)["loss"]
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def make_trainer(out: Path, callbacks: list[Any], **options: Any) -> pl.Trainer:
    """A trainer on one CPU that writes nothing by itself."""
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": out,
            "callbacks": callbacks,
            **options,
        }
    )


def loader_of(job: Job) -> DataLoader[Any]:
    """The job's batches, shuffled by seed and epoch."""
    data = job.data()
    return DataLoader(
        data,
        batch_size=job.batch_size,
        sampler=EpochShuffle(len(data), job.seed),  # type: ignore[arg-type]
    )


def run(job: Job) -> Outcome:
    """Run the job; a run that is to stop early writes its checkpoint where it stops."""
    learner = Learner(seeded_model(job), seed=job.seed)
    initial = copied(learner.net)
    callback = FrostlineCallback(plan=job.plan, schedule=job.schedule, replay=job.replay)
    stops = {} if job.stop_after is None else {"max_steps": job.stop_after}
    trainer = make_trainer(
        job.out,
        [callback],
        max_epochs=job.epochs,
        accumulate_grad_batches=job.accumulate,
        **stops,
    )
    with quietly():
        trainer.fit(learner, loader_of(job), ckpt_path=job.resume_from, weights_only=True)
        checkpoint = None
        if job.stop_after is not None:
            checkpoint = job.out / "stopped.ckpt"
            trainer.save_checkpoint(checkpoint)
    replayer = callback.replayer
    return Outcome(
        losses=learner.losses,
        initial=initial,
        weights=copied(learner.net),
        frozen=frozen_names(learner.net),
        checkpoint=checkpoint,
        replayed=0 if replayer is None else replayer.stats.replayed,
    )
