"""The job that frameworks and the command are given: a ViT on digits of which the head trains."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from _replay_jobs import BATCH, images, vit
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

LEARNING_RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured.

    Attributes:
        layers: of the ViT.
        samples: a multiple of the batch size; those of the callback's cost are fewer.
        cost_samples: for the callback's cost.
        epochs: of the runs that replay.
        rounds: how often all sides are run.
    """

    layers: int
    samples: int
    cost_samples: int
    epochs: int
    rounds: int


@dataclass(kw_only=True)
class Run:
    """One training by a framework.

    Attributes:
        seconds: of each epoch.
        losses: of each step.
        whole: seconds from the call that trains to its return.
        note: what the side tells of itself.
    """

    seconds: list[float] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    whole: float = 0.0
    note: str = ""
    _began: float = 0.0

    def begin_epoch(self) -> None:
        """An epoch begins."""
        self._began = perf_counter()

    def end_epoch(self) -> None:
        """It ends."""
        self.seconds.append(perf_counter() - self._began)

    def keep(self, loss: Tensor) -> Tensor:
        """Note a step's loss, and hand it on."""
        self.losses.append(loss.detach().clone())
        return loss

    @property
    def step(self) -> float:
        """Mean seconds of a step in the median epoch, of all but the first."""
        return statistics.median(self.seconds[1:]) * len(self.seconds) / len(self.losses)

    @property
    def once(self) -> float:
        """Seconds that a run takes whatever its length: all that is not such a step."""
        return self.whole - self.step * len(self.losses)


def same_losses(one: Run, other: Run) -> str:
    """Whether two runs had the same losses in every step, to the bit."""
    left, right = torch.stack(one.losses), torch.stack(other.losses)
    if torch.equal(left, right):
        return "same bits"
    steps = int((left != right).sum())
    return f"{steps} of {len(left)} differ, by {float((left - right).abs().max()):.0e} at most"


def fresh_vit(layers: int, *, width: int = 192) -> Any:
    """A ViT with the same random weights each time."""
    torch.manual_seed(0)
    return vit(width=width, layers=layers)


class Named(Dataset[dict[str, Tensor]]):
    """Pairs as the Trainer wants them: dicts.

    Args:
        data: of (inputs, label).
        name: of the inputs, in the model's forward.
    """

    def __init__(self, data: TensorDataset, name: str = "pixel_values") -> None:
        self._data = data
        self._name = name

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        inputs, label = self._data[index]
        return {self._name: inputs, "labels": label}


class HeadAlone(transformers.ViTForImageClassification):
    """A ViT that gets what its frozen part hands on: replay can't be faster than this.

    The frozen part is there and is never called, so that a framework has as many modules and
    parameters to walk through in each step as it has with the whole model.
    """

    main_input_name = "features"

    def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and the loss if there are labels."""
        logits = self.classifier(features)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def head_alone(model: Any) -> HeadAlone:
    """The same weights, the frozen part frozen."""
    alone = HeadAlone(model.config)
    alone.load_state_dict(model.state_dict())
    alone.vit.requires_grad_(False)
    return alone


def features_of(model: Any, data: TensorDataset) -> TensorDataset:
    """What the frozen part of a ViT hands to its head."""
    model.eval()
    inputs, labels = data.tensors
    with torch.no_grad():
        parts = [model.vit(part).last_hidden_state[:, 0] for part in inputs.split(BATCH)]
    return TensorDataset(torch.cat(parts), labels)


class Logits(nn.Module):
    """A ViT as the command takes a user's own model: inputs in, logits out."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.model = fresh_vit(layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (batch, classes) for images (batch, 3, 48, 48)."""
        logits: Tensor = self.model(pixels).logits
        return logits


def two_parts(samples: int) -> tuple[TensorDataset, TensorDataset]:
    """Images to train on, and a quarter as many that are held out."""
    held_out = max(BATCH, samples // 4 // BATCH * BATCH)
    pixels, labels = images(samples + held_out).tensors
    return (
        TensorDataset(pixels[:samples], labels[:samples]),
        TensorDataset(pixels[samples:], labels[samples:]),
    )
