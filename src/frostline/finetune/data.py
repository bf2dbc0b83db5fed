"""The data that the command brings along: real scans of handwritten digits.

They are the 1,797 scans of 8 x 8 pixels that scikit-learn ships, so nothing is downloaded. The
digits 0-4 serve for pretraining and 5-9 for fine-tuning: two tasks on the same kind of picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from frostline.errors import ConfigError

PRETRAINING_DIGITS = (0, 1, 2, 3, 4)
FINETUNING_DIGITS = (5, 6, 7, 8, 9)
_PIXEL_MAX = 16  # the scans are 4 x 4 sums of binary pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class Split(Dataset[tuple[Tensor, Tensor]]):
    """Scans with their labels, in a fixed order; a data set.

    Attributes:
        inputs: float32 of shape (scans, 1, 8, 8), each pixel from 0 to 1.
        targets: int64 of shape (scans,): the position of the digit in the task's ``digits``.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return self.inputs[place], self.targets[place]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A classification task: scans to train on and scans held out.

    Attributes:
        digits: the digits to tell apart; label ``i`` stands for ``digits[i]``.
        train: the scans to train on.
        held_out: the scans that no step trains on; every digit has its share.
    """

    digits: tuple[int, ...]
    train: Split
    held_out: Split


def load_digits_task(digits: Sequence[int], *, seed: int, held_out: float = 0.25) -> Task:
    """The scans of ``digits``, split by ``seed``.

    Args:
        digits: which digits, each from 0 to 9.
        seed: decides which scans are held out, and nothing else.
        held_out: the share of each digit's scans that is held out, between 0 and 1.

    Raises:
        ConfigError: scikit-learn is missing; the message has the line that installs it.

    >>> task = load_digits_task((5, 6, 7, 8, 9), seed=0)
    >>> task.train.inputs.shape, len(task.held_out)
    (torch.Size([671, 1, 8, 8]), 225)
    """
    pixels, labels = _read_scans()
    generator = torch.Generator().manual_seed(seed)
    kept: list[Tensor] = []
    held: list[Tensor] = []
    # Split digit by digit, so that a small held-out part misses none of them.
    for digit in digits:
        positions = (labels == digit).nonzero().flatten()
        positions = positions[torch.randperm(len(positions), generator=generator)]
        cut = round(len(positions) * held_out)
        held.append(positions[:cut])
        kept.append(positions[cut:])
    label_of = torch.full((10,), -1, dtype=torch.int64)
    label_of[list(digits)] = torch.arange(len(digits))
    train, rest = (
        Split(inputs=pixels[index], targets=label_of[labels[index]])
        for index in (torch.cat(kept), torch.cat(held))
    )
    return Task(digits=tuple(digits), train=train, held_out=rest)


def scans_version() -> str:
    """The version of scikit-learn, which decides what the scans are."""
    return str(_scikit_learn("sklearn").__version__)


def _read_scans() -> tuple[Tensor, Tensor]:
    """All scans: pixels of shape (1797, 1, 8, 8) from 0 to 1, and the digit of each."""
    bunch: Any = _scikit_learn("sklearn.datasets").load_digits()
    pixels = torch.tensor(bunch.images, dtype=torch.float32).div(_PIXEL_MAX).unsqueeze(1)
    return pixels, torch.tensor(bunch.target, dtype=torch.int64)


def _scikit_learn(module: str) -> Any:
    """Import a part of scikit-learn, which only the demo data needs."""
    try:
        return import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name in ("sklearn", "sklearn.datasets"):
            reason = "which is not installed"
        else:
            reason = f"which is installed but does not import ({error})"
        raise ConfigError(
            f"data 'digits' comes with scikit-learn, {reason}: pip install 'frostline[demo]'"
        ) from error
