"""A job, run by a loop on Accelerate."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from framework_jobs import EpochShuffle, Job, Outcome, copied, frozen_names, seeded_model
from torch.utils.data import DataLoader

import frostline as fl
from frostline.integrations.accelerate import keep_in_state, prepare


def fresh_accelerator(**options: Any) -> Accelerator:
    """On the CPU; what another one of this process has left (precision, accumulation) is gone."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(cpu=True, **options)


class Progress:
    """Epochs done: Accelerate saves whatever has these two methods."""

    def __init__(self) -> None:
        self.epoch = 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]


def run(job: Job) -> Outcome:
    """Run the job; a run that is to stop early stops at the end of an epoch."""
    accelerator = fresh_accelerator(gradient_accumulation_steps=job.accumulate)
    model = seeded_model(job)
    initial = copied(model)
    frozen = None if job.plan is None else fl.freeze(model, job.plan)
    data = job.data()
    sampler = EpochShuffle(len(data), job.seed)  # type: ignore[arg-type]
    loader: Any = DataLoader(data, batch_size=job.batch_size, sampler=sampler)
    optimizer: Any = fl.optimizer(
        torch.optim.AdamW, model, lr=1e-2, declare_all=job.schedule is not None
    )
    scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    batches = fl.replay(model, loader) if job.replay else loader
    model, optimizer, batches, scheduler = prepare(
        accelerator, model, optimizer, batches, scheduler
    )
    freezer = None
    if job.schedule is not None:
        freezer = fl.Freezer(model, optimizer, schedule=job.schedule)
    holder = freezer or frozen
    assert holder is not None
    keep_in_state(accelerator, holder)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if job.resume_from is not None:
        accelerator.load_state(str(job.resume_from))
    losses: list[float] = []
    set_seed(job.seed)
    checkpoint, steps = None, 0
    while progress.epoch < job.epochs and checkpoint is None:
        (batches.loader if job.replay else batches).set_epoch(progress.epoch)
        torch.manual_seed(1000 * job.seed + progress.epoch)
        model.train()
        for batch in batches:
            with accelerator.accumulate(model):
                loss = model(**batch)["loss"]
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                if freezer is not None:
                    freezer.step(loss)
                steps += accelerator.sync_gradients
                optimizer.zero_grad()
            losses.append(loss.item())
        progress.epoch += 1
        if freezer is not None:
            freezer.epoch()
        if steps == job.stop_after:
            checkpoint = job.out / "stopped"
            accelerator.save_state(str(checkpoint))
    return Outcome(
        losses=losses,
        initial=initial,
        weights=copied(accelerator.unwrap_model(model)),
        frozen=frozen_names(model),
        checkpoint=checkpoint,
        replayed=batches.replayer.stats.replayed if job.replay else 0,
    )
