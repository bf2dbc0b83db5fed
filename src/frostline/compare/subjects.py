"""What ``frostline compare`` runs: built-in networks, or a user's model, each with its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.data import FINETUNING_DIGITS, load_digits_task
from frostline.finetune.networks import BUILTIN
from frostline.finetune.prepare import open_named
from frostline.finetune.sources.base import Note, Sources
from frostline.finetune.sources.nearby import near_on_disk
from frostline.selection import SelectorLike, as_selector

Batch = tuple[Tensor, Tensor]
"""Inputs and integer targets, the batch first."""

_BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network to compare the ways on.

    Attributes:
        network: makes it with fresh weights.
        batches: makes its batches from a seed, as :func:`frostline.finetune.loop.batch_loss` takes
            them.
        freeze: selectors of what is frozen unless something else is asked for.
        threads: threads to compute with; None for torch's own choice.
    """

    network: Callable[[], nn.Module]
    batches: Callable[[int], list[Any]]
    freeze: SelectorLike
    threads: int | None = None


def find_subject(
    model: str, data: str | None = None, *, count: int = 10, note: Note = lambda line: None
) -> Subject:
    """The subject that the command's options name.

    Args:
        model: a built-in network; with data, whatever ``frostline finetune`` takes.
        data: as ``frostline finetune`` takes them; None for a built-in network's own.
        count: how many batches to make of such data, at most.
        note: is told in one line what takes long.

    Raises:
        FrostlineError: there is no such model or data, or they don't fit each other.

    >>> find_subject("digits-cnn").freeze
    ('stem', 'block1', 'block2')
    """
    if data is not None:
        return _opened(open_named(FinetuneConfig(model=model, data=data), note), count)
    if model not in SUBJECTS:
        near = near_on_disk(model, also=SUBJECTS)
        hint = f" Did you mean {near!r}?" if near not in (None, model) else ""
        raise ConfigError(
            f"what should {model!r} be trained on? Give --data FOLDER, FILE or NAME; without there"
            f" are {', '.join(SUBJECTS)}.{hint}"
        )
    return SUBJECTS[model]


def _opened(sources: Sources, count: int) -> Subject:
    """A user's model and data: everything but its head is frozen, if nothing else is asked for."""

    def batches(seed: int) -> list[Any]:
        samples = len(sources.train)  # type: ignore[arg-type]
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).tolist()
        size = min(_BATCH_SIZE, samples)  # an equal size for all, to be timed together
        starts = range(0, min(samples - size + 1, count * size), size)
        return [
            sources.collate([sources.train[at] for at in order[start : start + size]])
            for start in starts
        ]

    return Subject(
        network=lambda: sources.model,
        batches=batches,
        freeze=~as_selector(sources.head) if sources.head else (),
    )


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
