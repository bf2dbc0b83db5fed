"""A job, run by Hugging Face's Trainer with ``FrostlineCallback``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from framework_jobs import Job, Outcome, copied, frozen_names, seeded_model
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from frostline.integrations.huggingface import FrostlineCallback


class RecordingTrainer(Trainer):
    """Notes the loss of each micro-batch."""

    losses: list[float]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, noted; it is halved and the like only afterwards."""
        loss = super().compute_loss(*args, **kwargs)
        if isinstance(loss, Tensor):
            self.losses.append(loss.item())
        return loss


class StopAfter(TrainerCallback):
    """Saves and ends a run after so many optimizer steps, as if it had been killed then."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say so, when the time has come."""
        if state.global_step == self.steps:
            control.should_save = control.should_training_stop = True


def arguments(out: Path, **options: Any) -> TrainingArguments:
    """Arguments of a quiet run on the CPU that saves and reports nothing by itself."""
    return TrainingArguments(
        **{
            "output_dir": str(out),
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "logging_strategy": "no",
            "save_strategy": "no",
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
            "learning_rate": 1e-2,
            # It changes the rate, and does not depend on how long the run is.
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 8,
            **options,
        }
    )


def quiet_trainer(*args: Any, **kwargs: Any) -> RecordingTrainer:
    """A trainer that prints nothing."""
    trainer = RecordingTrainer(*args, **kwargs)
    trainer.losses = []
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(job: Job) -> Outcome:
    """Run the job; a run that is to stop early writes its checkpoint where it stops."""
    model = seeded_model(job)
    initial = copied(model)
    callback = FrostlineCallback(plan=job.plan, schedule=job.schedule, replay=job.replay)
    stops = [] if job.stop_after is None else [StopAfter(job.stop_after)]
    trainer = quiet_trainer(
        model,
        arguments(
            job.out,
            num_train_epochs=job.epochs,
            per_device_train_batch_size=job.batch_size,
            gradient_accumulation_steps=job.accumulate,
            seed=job.seed,
        ),
        train_dataset=job.data(),
        callbacks=[callback, *stops],
    )
    trainer.train(resume_from_checkpoint=None if job.resume_from is None else str(job.resume_from))
    return Outcome(
        losses=trainer.losses,
        initial=initial,
        weights=copied(model),
        frozen=frozen_names(model),
        checkpoint=job.out / f"checkpoint-{job.stop_after}" if job.stop_after else None,
        replayed=0 if callback.replayer is None else callback.replayer.stats.replayed,
    )
