"""The same job in frameworks, each in its own way: a head trained on a frozen backbone.

Every function gives the seconds of each epoch, without what the framework does before the first
and after the last. Logging, checkpoints, progress bars and validation are off everywhere.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from _replay_jobs import BATCH, JOBS, Scale, Setting
from _replay_sides import LEARNING_RATE, by_hand, loader_of, replayed
from _report import table
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

EPOCHS = 6

Run = Callable[[nn.Module, TensorDataset, int], list[float]]
"""``run(model, data, epochs)``: the seconds of each epoch."""

SETTING: Setting = JOBS["vit"].head


class Clock:
    """Notes when epochs begin and end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def begin(self) -> None:
        """An epoch begins."""
        self._began = perf_counter()

    def end(self) -> None:
        """It ends."""
        self.seconds.append(perf_counter() - self._began)


def plain_pytorch(model: nn.Module, data: TensorDataset, epochs: int) -> list[float]:
    """Way four, by hand."""
    side = by_hand(model, SETTING, data)
    return [side.epoch(number) for number in range(epochs)]


def frostline_replay(model: nn.Module, data: TensorDataset, epochs: int) -> list[float]:
    """The same loop with fl.freeze, fl.optimizer and fl.replay."""
    side = replayed(model, SETTING, data)
    return [side.epoch(number) for number in range(epochs)]


def hugging_face(model: nn.Module, data: TensorDataset, epochs: int) -> list[float]:
    """transformers.Trainer on a model whose backbone has requires_grad=False."""
    importlib.import_module("accelerate")
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    clock = Clock()

    class Told(TrainerCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            clock.end()

    model = copy.deepcopy(model)
    model.vit.requires_grad_(False)
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
        )
        trainer = Trainer(model, arguments, train_dataset=_Named(data), callbacks=[Told()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds


def lightning(model: nn.Module, data: TensorDataset, epochs: int) -> list[float]:
    """Lightning with its BaseFinetuning callback."""
    pl = importlib.import_module("lightning.pytorch")
    callbacks = importlib.import_module("lightning.pytorch.callbacks")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    clock = Clock()

    class Classifier(pl.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(model)

        def training_step(self, batch: Any, number: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]).logits, batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            trainable = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.AdamW(trainable, lr=LEARNING_RATE)

    class Backbone(callbacks.BaseFinetuning):  # type: ignore[name-defined, misc]
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(module.model.vit)

        def finetune_function(self, *_: Any) -> None:
            """It stays frozen."""

    class Told(callbacks.Callback):  # type: ignore[name-defined, misc]
        def on_train_epoch_start(self, *_: Any) -> None:
            clock.begin()

        def on_train_epoch_end(self, *_: Any) -> None:
            clock.end()

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[Backbone(), Told()],
        )
        trainer.fit(Classifier(), loader_of(data))
    return clock.seconds


def fastai(model: nn.Module, data: TensorDataset, epochs: int) -> list[float]:
    """A fastai Learner with two parameter groups, frozen by learn.freeze()."""
    learner = importlib.import_module("fastai.learner")
    core = importlib.import_module("fastai.callback.core")
    loaders = importlib.import_module("fastai.data.core")
    optimizers = importlib.import_module("fastai.optimizer")
    clock = Clock()

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(model)

        def forward(self, images: Tensor) -> Any:
            return self.model(images).logits

    class Told(core.Callback):  # type: ignore[name-defined, misc]
        def before_train(self) -> None:
            clock.begin()

        def after_train(self) -> None:
            clock.end()

        def before_validate(self) -> None:
            raise core.CancelValidException()

    loader = loader_of(data)
    learn = learner.Learner(
        loaders.DataLoaders(loader, loader, device="cpu"),
        Logits(),
        loss_func=F.cross_entropy,
        opt_func=partial(optimizers.OptimWrapper, opt=torch.optim.AdamW),
        splitter=lambda net: [
            list(net.model.vit.parameters()),
            list(net.model.classifier.parameters()),
        ],
        cbs=[Told()],
    )
    learn.freeze()
    with learn.no_logging():
        learn.fit(epochs, LEARNING_RATE)
    return clock.seconds


FRAMEWORKS: dict[str, tuple[str, Run]] = {
    "plain PyTorch, way four": ("torch", plain_pytorch),
    "plain PyTorch, fl.replay": ("frostline", frostline_replay),
    "Hugging Face Trainer": ("transformers", hugging_face),
    "Lightning, BaseFinetuning": ("lightning", lightning),
    "fastai, freeze": ("fastai", fastai),
}
"""Name for the table → package of which the version is told, and how it runs."""


def frameworks(scale: Scale) -> None:
    """The same job in frameworks that freeze."""
    data = JOBS["vit"].data(scale.samples)
    base = JOBS["vit"].fresh()
    seconds: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    for name, (_, run) in FRAMEWORKS.items():
        try:
            seconds[name] = run(base, data, EPOCHS)
        except ImportError as error:
            missing[name] = f"left out: {error}"
    plain = seconds["plain PyTorch, way four"]
    rows = [
        [
            f"{name} ({importlib.metadata.version(FRAMEWORKS[name][0])})",
            f"{statistics.median(taken[1:]) * 1e3:.1f}",
            f"{statistics.median(plain[1:]) / statistics.median(taken[1:]):.2f}",
            f"{sum(taken):.2f}",
            f"{sum(plain) / sum(taken):.2f}",
        ]
        for name, taken in seconds.items()
    ]
    rows += [[name, why, "", "", ""] for name, why in missing.items()]
    print(
        f"## The same job elsewhere\n\nThe head of the ViT, {EPOCHS} epochs, one after another in"
        " the order of the table; logging, checkpoints, bars and validation off.\n"
    )
    columns = ["by", "an epoch after the first, ms", "times as fast as plain PyTorch"]
    table([*columns, f"{EPOCHS} epochs, s", "times as fast as plain PyTorch"], rows)


class _Named(Dataset[dict[str, Tensor]]):
    """The data as the Trainer wants it: dicts."""

    def __init__(self, data: TensorDataset) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pixels, label = self._data[index]
        return {"pixel_values": pixels, "labels": label}
