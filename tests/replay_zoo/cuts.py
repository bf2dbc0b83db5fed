"""One model cut in several ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from replay_zoo.settings import Setting


def cuts(
    name: str,
    make: Callable[[], nn.Module],
    batch: Callable[[int], Any],
    trained: Mapping[str, str | tuple[str, ...]],
    **fields: Any,
) -> list[Setting]:
    """A setting for each entry of ``trained``: the cut's name → what trains.

    ``fields`` are further fields of each setting; the loss is :func:`classified` without.
    """
    fields = {"loss": classified, **fields}
    return [
        Setting(
            name=f"{name}/{cut}",
            make=make,
            batch=batch,
            trains=(trains,) if isinstance(trains, str) else trains,
            **fields,
        )
        for cut, trains in trained.items()
    ]


def pictures(samples: int, *, side: int = 16, classes: int = 3) -> dict[str, Tensor]:
    """Pictures ``x`` with a class ``y`` each."""
    return {
        "x": torch.randn(samples, 3, side, side),
        "y": torch.randint(0, classes, (samples,)),
    }


def vectors(samples: int, *, width: int = 8, classes: int = 3) -> dict[str, Tensor]:
    """Vectors ``x`` with a class ``y`` each."""
    return {"x": torch.randn(samples, width), "y": torch.randint(0, classes, (samples,))}


def sentences(samples: int, *, length: int = 8, classes: int = 3) -> dict[str, Tensor]:
    """Token ids ``x`` from 3 to 49, padded with 0 beyond each sample's own length."""
    mask = torch.arange(length)[None] < torch.randint(length // 2, length + 1, (samples, 1))
    ids = torch.randint(3, 50, (samples, length)) * mask
    return {"x": ids, "y": torch.randint(0, classes, (samples,))}


def classified(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross entropy of what the model makes of ``x``."""
    return functional.cross_entropy(model(batch["x"]), batch["y"])
