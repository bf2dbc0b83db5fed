"""Models that are compiled, scripted or wrapped: their modules are not called one by one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from refusing import made
from replaying import CLASSES, WIDTH
from torch import nn

import frostline as fl


def _called(model: nn.Module, call: Any = None) -> fl.Replayer:
    replayer = fl.Replayer(model)
    for _ in range(3):
        with replayer.samples(range(8)):
            (call or model)(torch.ones(8, WIDTH))
    return replayer


def _compiled_outside() -> nn.Module:
    return torch.compile(made()(), backend="eager")


def _compiled_in_place() -> nn.Module:
    model = made()()
    model.compile(backend="eager")
    return model


def _scripted() -> nn.Module:
    with torch.no_grad():
        stem = torch.jit.trace(nn.Linear(WIDTH, WIDTH), torch.ones(2, WIDTH))
    return nn.Sequential(stem.requires_grad_(False), nn.Linear(WIDTH, CLASSES))


_WRAPPED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "compiled-outside": (_compiled_outside, "is compiled.*as it was before torch.compile"),
    "compiled-in-place": (_compiled_in_place, "is compiled.*as it was before torch.compile"),
    "torchscript": (_scripted, "0 is a TorchScript program"),
    "data-parallel": (lambda: nn.DataParallel(made()()), "DataParallel.*Replay the bare model"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", _WRAPPED)
def test_models_that_cannot_be_seen_into(name: str) -> None:
    make, reason = _WRAPPED[name]
    replayer = _called(make())
    assert replayer.stats.replayed == 0
    assert replayer.declined is not None
    assert re.search(reason, replayer.declined)
