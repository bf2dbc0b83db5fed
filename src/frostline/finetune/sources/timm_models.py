"""Image models of timm, where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import ModelSourceError
from frostline.finetune.blame import describe
from frostline.finetune.sources.extras import require
from frostline.selection.suggest import nearest

PREFIX = "timm:"


def is_timm_name(name: str) -> bool:
    """Whether ``name`` says that it is timm's, or timm is installed and has such a model."""
    if name.startswith(PREFIX):
        return True
    if "/" in name or ":" in name or importlib.util.find_spec("timm") is None:
        return False
    return bool(require("timm", reason=f"model {name!r}").is_model(name.partition(".")[0]))


class TimmModel:
    """One of timm's models, not yet made.

    Args:
        source: ``timm:resnet50``, or the name alone.

    Raises:
        ConfigError: timm is not installed.
        ModelSourceError: it has no such model.
    """

    def __init__(self, source: str) -> None:
        self._timm = require("timm", reason=f"model {source!r}", install="timm")
        self._name = source.removeprefix(PREFIX)
        if not self._timm.is_model(self._name.partition(".")[0]):
            raise ModelSourceError(
                f"timm has no model {self._name!r}.{nearest(self._name, self._timm.list_models())}"
            )

    def build(self, classes: int | None, *, seed: int) -> nn.Module:
        """The model with its pretrained weights and a head for so many classes; None: its own.

        Raises:
            ModelSourceError: timm could not make it, or could not fetch the weights.
        """
        head = {} if classes is None else {"num_classes": classes}
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = self._timm.create_model(self._name, pretrained=True, **head)
        except Exception as error:
            raise ModelSourceError(
                f"timm could not make {self._name!r}: {describe(error)}; with no network its"
                " weights must be in the cache"
            ) from error
        assert isinstance(model, nn.Module)
        return model

    def transform(self, model: nn.Module) -> tuple[Callable[[Any], Tensor], object]:
        """What makes a tensor of a PIL image for ``model``, without chance, and what decides it."""
        data = require("timm.data", reason=f"model {self._name!r}", install="timm")
        settings = data.resolve_model_data_config(model)
        return data.create_transform(**settings, is_training=False), sorted(settings.items())


def head_of(model: Any) -> tuple[str, ...]:
    """Selectors of the head, as timm's own configuration of the model names it."""
    settings = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    named = settings.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)
