"""One training in the Trainer or in Lightning, with or without Frostline's callback.

Logging, checkpoints, progress bars and validation are off; the freezing is the framework user's
own where there is no callback.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from _integration_jobs import LEARNING_RATE, HeadAlone, Named, Run
from _replay_jobs import BATCH
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import frostline.integrations.huggingface as in_trainer
import frostline.integrations.lightning as in_lightning


class Framework(Protocol):
    """``train(model, data, epochs, callback)``; a None in place of a callback: frozen by hand."""

    def __call__(
        self, model: nn.Module, data: TensorDataset, epochs: int, callback: Any = None
    ) -> Run:
        """Train a copy of the model."""


class _Noted(Trainer):
    """A Trainer that keeps each step's loss."""

    run: Run

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As ever."""
        return self.run.keep(super().compute_loss(*args, **kwargs))


class _EpochsOfTrainer(TrainerCallback):
    def __init__(self, run: Run) -> None:
        self._run = run

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._run.begin_epoch()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self._run.end_epoch()


def hugging_face(model: nn.Module, data: TensorDataset, epochs: int, callback: Any = None) -> Run:
    """transformers.Trainer; what is frozen by hand has requires_grad off before."""
    model, run = copy.deepcopy(model), Run()
    name = "features" if isinstance(model, HeadAlone) else "pixel_values"
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=epochs,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            label_names=["labels"],
        )
        # Ours first: its work between epochs is then in the epochs' seconds.
        own = [] if callback is None else [callback]
        trainer = _Noted(
            model,
            arguments,
            train_dataset=Named(data, name),
            callbacks=[*own, _EpochsOfTrainer(run)],
        )
        trainer.run = run
        trainer.remove_callback(PrinterCallback)
        began = perf_counter()
        trainer.train()
        run.whole = perf_counter() - began
    return _told(run, callback)


class _Classifier(pl.LightningModule):
    def __init__(self, model: nn.Module, run: Run) -> None:
        super().__init__()
        self.model = model
        self._losses = run

    def training_step(self, batch: Any, number: int) -> Tensor:
        inputs, labels = batch
        given = self.model(inputs)
        logits = given["logits"] if isinstance(given, dict) else given.logits
        return self._losses.keep(cross_entropy(logits, labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trainable = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trainable, lr=LEARNING_RATE)


class _EpochsOfLightning(pl.Callback):
    def __init__(self, run: Run) -> None:
        self._run = run

    def on_train_epoch_start(self, *_: Any) -> None:
        self._run.begin_epoch()

    def on_train_epoch_end(self, *_: Any) -> None:
        self._run.end_epoch()


def lightning(model: nn.Module, data: TensorDataset, epochs: int, callback: Any = None) -> Run:
    """Lightning; what is frozen by hand has requires_grad off, and is in eval mode."""
    module_run = Run()
    module = _Classifier(copy.deepcopy(model).train(), module_run)
    if callback is None:
        for part in module.modules():
            own = list(part.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                part.eval()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its advice about workers, and about eval mode
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[*([] if callback is None else [callback]), _EpochsOfLightning(module_run)],
        )
        began = perf_counter()
        trainer.fit(module, DataLoader(data, batch_size=BATCH, shuffle=True))
        module_run.whole = perf_counter() - began
    return _told(module_run, callback)


FRAMEWORKS: dict[str, tuple[str, str, Framework, Callable[..., Any]]] = {
    "trainer": ("Trainer", "transformers", hugging_face, in_trainer.FrostlineCallback),
    "lightning": ("Lightning", "lightning", lightning, in_lightning.FrostlineCallback),
}
"""Section → name, package, how it trains, and its callback."""


def _told(run: Run, callback: Any) -> Run:
    replayer = None if callback is None else callback.replayer
    if replayer is not None:
        stats = replayer.stats
        declined = "" if replayer.declined is None else f"; declined: {replayer.declined}"
        run.note = f"{stats.replayed} of {len(run.losses)}{declined}"
    return run
