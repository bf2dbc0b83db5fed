"""Example inputs for models, and the frost line that shows on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from frostline.errors import ConfigError, ModelSourceError
from frostline.finetune import run_folder
from frostline.finetune.blame import describe
from frostline.finetune.config import load_config
from frostline.finetune.models import load_model
from frostline.finetune.networks import BUILTIN
from frostline.finetune.threads import threads
from frostline.freezing import Plan, freeze
from frostline.replay.frost_line import FrostLine, frost_line

_SHAPES = {"tutorial": (8,), "digits-cnn": (1, 8, 8)}
_SAMPLES = 32


def example_shape(source: str) -> tuple[int, ...] | None:
    """The shape of one sample that a built-in network takes; None for what is not built in.

    >>> example_shape("digits-cnn"), example_shape("model.py:build")
    ((1, 8, 8), None)
    """
    return _SHAPES.get(source)


def find_frost_line(
    model: nn.Module, source: str, shape: Sequence[int], *, samples: int = _SAMPLES
) -> FrostLine:
    """The frost line of a model in training, on random floats; the model is left in train mode.

    Args:
        model: frozen in part.
        source: what ``--model`` said; for messages, and a built-in gets one thread.
        shape: sizes of one sample.
        samples: how many samples to draw.

    Raises:
        ModelSourceError: the model does not take such inputs.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    >>> frozen = freeze(model, "0")
    >>> find_frost_line(model, "net", (8,)).kept
    {'0': 32}
    """
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, *shape, generator=draw)
    parameter = next(model.parameters(), None)
    if parameter is not None:
        inputs = inputs.to(parameter.device)
    model.train()
    try:
        with threads(1 if source in BUILTIN else None):
            return frost_line(model, inputs)
    # Whatever a foreign model raises.
    except Exception as error:
        raise ModelSourceError(
            f"model {source!r}: a forward pass of floats of shape {tuple(inputs.shape)} raised"
            f" {describe(error)}"
        ) from error


def frost_line_of_run(folder: Path, plan: Plan | None = None) -> FrostLine | None:
    """The frost line of a run's model under its plan, or under another.

    Only built-in networks are looked at: another model's code would have to be run.

    Returns:
        None if the folder is no run, or not of a built-in network.

    >>> frost_line_of_run(Path("nowhere")) is None
    True
    """
    if not (folder / run_folder.CONFIG).is_file():
        return None
    try:
        source = load_config(folder / run_folder.CONFIG).model
    except ConfigError:
        return None
    shape = example_shape(source)
    if shape is None:
        return None
    model = load_model(source)
    freeze(model, plan or Plan.load(folder / run_folder.PLAN))
    return find_frost_line(model, source, shape)
