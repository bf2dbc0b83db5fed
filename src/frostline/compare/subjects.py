"""The networks that ``frostline compare`` can run, each with what it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError
from frostline.finetune.data import FINETUNING_DIGITS, load_digits_task
from frostline.finetune.networks import BUILTIN
from frostline.selection.suggest import nearest

Batch = tuple[Tensor, Tensor]
"""Inputs and integer targets, the batch first."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network to compare the ways on.

    Attributes:
        network: makes it with fresh weights.
        batches: makes its batches from a seed.
        freeze: selectors of what is frozen unless something else is asked for.
        threads: threads to compute with; None for torch's own choice.
    """

    network: Callable[[], nn.Module]
    batches: Callable[[int], list[Batch]]
    freeze: tuple[str, ...]
    threads: int | None = None


def find_subject(name: str) -> Subject:
    """The subject of that name; raises ConfigError with the nearest names.

    >>> find_subject("digits-cnn").freeze
    ('stem', 'block1', 'block2')
    """
    if name not in SUBJECTS:
        raise ConfigError(f"nothing to compare is called {name!r}.{nearest(name, SUBJECTS)}")
    return SUBJECTS[name]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of a batch, a scalar in nats."""
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets)


def _random_batches(seed: int) -> list[Batch]:
    """Ten batches of three random rows of 8 numbers with random labels, as in the tutorials."""
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(3, 8, generator=draw), torch.randint(0, 10, (3,), generator=draw))
        for _ in range(10)
    ]


def _digit_batches(seed: int) -> list[Batch]:
    """The training scans of 5-9 in batches of 32, without the incomplete last one."""
    scans = load_digits_task(FINETUNING_DIGITS, seed=seed).train
    order = torch.randperm(len(scans), generator=torch.Generator().manual_seed(seed))
    return [
        (scans.inputs[rows], scans.targets[rows])
        for rows in torch.split(order, 32)
        if len(rows) == 32  # an equal size for all, or the steps could not be timed together
    ]


SUBJECTS: Mapping[str, Subject] = MappingProxyType(
    {
        "tutorial": Subject(
            network=BUILTIN["tutorial"],
            batches=_random_batches,
            freeze=("fc1",),
            # Three rows are too few to share out: a second thread only makes the first one wait.
            threads=1,
        ),
        "digits-cnn": Subject(
            network=BUILTIN["digits-cnn"],
            batches=_digit_batches,
            freeze=("stem", "block1", "block2"),
        ),
    }
)
"""Subjects by the names that ``--model`` takes."""
