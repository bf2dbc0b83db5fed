"""A frozen stem and body before a head that trains; the body does whatever a test says."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from replaying import CLASSES, WIDTH, Pairs
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import frostline as fl


class Body(nn.Module):
    """A frozen part that computes whatever ``how`` says."""

    def __init__(self, how: Callable[[Body, Tensor], Any], **held: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.how = how
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.how(self, x)


class Stack(nn.Module):
    """Stem and body are frozen, the head trains."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(WIDTH, WIDTH), body, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


def plain(body: Body, x: Tensor) -> Tensor:
    return body.fc2(torch.tanh(body.fc1(x)))


def loader(data: Dataset[Any] | None = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(data or Pairs(40), **{"batch_size": 8, "shuffle": True, **options})


def made(
    how: Callable[[Body, Tensor], Any] = plain,
    held: Callable[[], dict[str, Any]] = dict,
    *,
    kind: type[Stack] = Stack,
    then: Callable[[Stack], object] = lambda model: None,
    **options: Any,
) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = kind(Body(how, **held()))
        fl.freeze(model, **{"all_but": "head", **options})
        then(model)
        return model

    return make


def leaves(body: Body, x: Tensor) -> Tensor:
    body.left = body.fc1(x)
    return plain(body, x)


def hooked(model: Stack) -> None:
    model.body.register_forward_hook(lambda module, args, output: output * 2)


def hooked_inside(model: Stack) -> None:
    model.body.fc1.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
