"""A run's state between two epochs, as one file that holds tensors and plain values only."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frostline.checkpoint import fingerprints
from frostline.errors import ConfigError
from frostline.finetune.scoring import Scores


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        epoch: epochs that are finished.
        before: scores on the held-out samples before the first.
        best: the same after the best.
        best_epoch: which one that is; 0 before the first.
        seconds: time of the epochs so far.
    """

    epoch: int
    before: Scores
    best: Scores
    best_epoch: int
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Saved:
    """What a checkpoint holds.

    Attributes:
        progress: how far the run was.
        tensors: the model's tensors, without those that are as before the first step.
        states: name → state of the optimizer and whatever else steps with it.
    """

    progress: Progress
    tensors: Mapping[str, Tensor]
    states: Mapping[str, dict[str, Any]]


def pack(
    progress: Progress,
    model: nn.Module,
    base: Mapping[str, str],
    states: Mapping[str, Mapping[str, Any]],
    *,
    held: Collection[str] = (),
) -> bytes:
    """A checkpoint; :func:`unpack` and ``torch.load(weights_only=True)`` read it.

    No state of a random generator is in it: every epoch is seeded by its number. What is
    held and as ``base`` has it is not in it: a model that begins anew has that by itself.

    Args:
        progress: how far the run is.
        model: its model.
        base: fingerprints of the model from before the first step.
        states: state dicts to keep, by name.
        held: names of what is frozen for the whole run.
    """
    now = fingerprints(model)
    tensors = {
        name: tensor.detach()
        for name, tensor in _tensors(model)
        if name not in held or name not in base or now[name] != base[name]
    }
    content = {"progress": asdict(progress), "tensors": tensors, "states": dict(states)}
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def unpack(path: Path) -> Saved:
    """Read what :func:`pack` made.

    Raises:
        ConfigError: it is not there, or damaged.
    """
    try:
        stream = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise _useless(path, error.strerror or str(error)) from error
    try:
        content = torch.load(stream, map_location="cpu", weights_only=True)
        told = content["progress"]
        scores = {name: Scores(**told[name]) for name in ("before", "best")}
        progress = Progress(**{**told, **scores})
        return Saved(progress=progress, tensors=content["tensors"], states=content["states"])
    # torch.load raises whatever its zip reader, its unpickler or its storages run into.
    except Exception as error:
        raise _useless(path, "it is damaged") from error


def fill(model: nn.Module, tensors: Mapping[str, Tensor], base: Mapping[str, str]) -> None:
    """Put a checkpoint's tensors in place of the model's content.

    In place, so that ties stay, and buffers too that the model leaves out of its state dict.

    Args:
        model: as it was before the first step.
        tensors: what of it has changed since.
        base: what :func:`pack` was given.

    Raises:
        ConfigError: it is another model; nothing was changed.
    """
    there = dict(_tensors(model))
    now = fingerprints(model)
    odd = [name for name in sorted({*tensors, *base}) if name not in there]
    odd += [
        name
        for name, tensor in there.items()
        if (
            not _fits(tensor, tensors[name])
            if name in tensors
            else name not in base or now[name] != base[name]
        )
    ]
    if odd:
        raise ConfigError(
            "the model is not the one that the run began with, so it can't be resumed:"
            f" {min(odd)} differs. Give it back the weights that it had, or train anew"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            there[name].copy_(tensor)


def fill_best(model: nn.Module, path: Path) -> None:
    """Put the tensors of another checkpoint of the same run in place; ConfigError if damaged."""
    there = dict(_tensors(model))
    with torch.no_grad():
        for name, tensor in unpack(path).tensors.items():
            there[name].copy_(tensor)


def _useless(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path.parent} can't be resumed: {path.name}: {reason}")


def _fits(there: Tensor, tensor: Tensor) -> bool:
    return there.shape == tensor.shape and there.dtype == tensor.dtype


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each tensor under its first name, as fingerprints are taken."""
    return chain(model.named_parameters(), model.named_buffers())
