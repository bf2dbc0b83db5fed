"""A run's state between two epochs, as one file that holds tensors and plain values only."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        epoch: epochs that are finished.
        accuracy_before: accuracy on the held-out scans before the first.
        accuracy: the same after the last.
        seconds: time of the epochs so far.
    """

    epoch: int
    accuracy_before: float
    accuracy: float
    seconds: float


class Stateful(Protocol):
    """An optimizer, or a freezer, which keeps its optimizer's state too."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        ...


def pack(progress: Progress, model: nn.Module, optimizer: Stateful) -> bytes:
    """A checkpoint; :func:`unpack` and ``torch.load(weights_only=True)`` read it.

    No state of a random generator is in it: every epoch is seeded by its number.
    """
    content = {
        "progress": vars(progress),
        "tensors": dict(_tensors(model)),
        "optimizer": optimizer.state_dict(),
    }
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def unpack(path: Path) -> tuple[Progress, Mapping[str, Tensor], dict[str, Any]]:
    """Progress, the model's tensors, and the state of the optimizer or freezer.

    Raises:
        ConfigError: it is not there, or damaged.
    """
    try:
        stream = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise _useless(path, error.strerror or str(error)) from error
    try:
        content = torch.load(stream, map_location="cpu", weights_only=True)
        return Progress(**content["progress"]), content["tensors"], content["optimizer"]
    # torch.load raises whatever its zip reader, its unpickler or its storages run into.
    except Exception as error:
        raise _useless(path, "it is damaged") from error


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put a checkpoint's tensors in place of the model's content; ConfigError if they don't fit.

    In place, so that ties stay, and buffers too that the model leaves out of its state dict.
    """
    there = dict(_tensors(model))
    odd = [
        name
        for name in sorted({*there, *tensors})
        if name not in there or name not in tensors or not _fits(there[name], tensors[name])
    ]
    if odd:
        raise ConfigError(
            f"the model has changed since the run began, so it can't be resumed: {odd[0]} differs"
        )
    with torch.no_grad():
        for name, tensor in there.items():
            tensor.copy_(tensors[name])


def _useless(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path.parent} can't be resumed: {path.name}: {reason}")


def _fits(there: Tensor, tensor: Tensor) -> bool:
    return there.shape == tensor.shape and there.dtype == tensor.dtype


def _tensors(model: nn.Module) -> Any:
    return chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )
