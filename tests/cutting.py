"""Small models for the tests of the frost line, and the cut told call by call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from frostline.replay.cut import Cut, find_cut
from frostline.replay.liveness import Exclusions
from frostline.replay.trace import trace

WIDTH = 16


class Wired(nn.Module):
    """Modules under names, wired by a function; a parameter ``scale`` of its own."""

    def __init__(self, wiring: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.wiring = wiring
        self.scale = nn.Parameter(torch.ones(WIDTH), requires_grad=False)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any) -> Any:
        return self.wiring(self, *args)


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def body(wiring: Callable[..., Any], **modules: nn.Module) -> Wired:
    """A model of which a frozen ``body`` is wired so, with a head."""
    inner = Wired(wiring, **(modules or {"fc": linear()}))
    return Wired(lambda m, x: m.head(m.body(x)), body=inner, head=linear())


def trained(model: nn.Module, *names: str) -> nn.Module:
    """All is frozen but what is named."""
    model.requires_grad_(False)
    for name in names or ("head",):
        model.get_submodule(name).requires_grad_(True)
    return model


def cut_of(model: nn.Module, *args: Any, exclusions: Exclusions | None = None) -> Cut:
    graph = trace(model, "", model.forward, args or (torch.randn(32, WIDTH),), {})
    return find_cut(graph, exclusions)


def told(cut: Cut) -> dict[str, str]:
    """Place → for each result: kept, skipped, or handed through."""
    return {
        str(planned.call.place): " ".join(
            "kept" if kept else "skipped" if handed is None else "handed"
            for kept, handed in zip(planned.kept, planned.handed, strict=True)
        )
        for planned in cut.planned
    }


def sequential(*modules: nn.Module, trains: str) -> nn.Module:
    return trained(nn.Sequential(*modules), trains)
