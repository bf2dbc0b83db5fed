"""Small models that several tests share, and a Hypothesis strategy for random ones."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn


class Block(nn.Module):
    """Linear, BatchNorm, ReLU, Dropout: what a freeze must hold still."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.norm(self.fc(x))))


class Net(nn.Module):
    """A stem, a list of blocks, dropout before a head; 8 → 3."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.layers = nn.ModuleList([Block() for _ in range(depth)])
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.drop(x))


class Vit(nn.Module):
    """Parameters held directly by the root, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 3, 4))
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)


class TiedLm(nn.Module):
    """Embedding and output head are one parameter, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(6, 4), "h": nn.Linear(4, 4)})
        self.lm_head = nn.Linear(4, 6, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.transformer["h"](self.transformer["wte"](ids)))


class SharedStorage(nn.Module):
    """Two Parameter objects on one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False)
        self.b = nn.Linear(4, 4, bias=False)
        self.c = nn.Linear(4, 2)
        self.b.weight = nn.Parameter(self.a.weight.data)


def beside_a_head(body: nn.Module) -> nn.ModuleDict:
    """A body of any kind that takes 4 numbers, and the head that trains on it."""
    return nn.ModuleDict({"body": body, "head": nn.Linear(4, 2)})


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: int = 6) -> None:
    """One ordinary training step of a model that takes 8 numbers."""
    optimizer.zero_grad()
    model(torch.randn(batch, 8)).square().mean().backward()
    optimizer.step()


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """A random network of 8 → 8 layers: norms, dropout, nesting, ties, hand-frozen parts."""
    layers: list[nn.Module] = []
    for kind in draw(st.lists(st.sampled_from("lbndst"), min_size=1, max_size=6)):
        if kind == "l":
            layers.append(nn.Linear(8, 8))
        elif kind == "b":
            layers.append(Block())
        elif kind == "n":
            layers.append(nn.LayerNorm(8))
        elif kind == "d":
            layers.append(nn.Dropout(0.3))
        elif kind == "s":
            layers.append(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh()))
        else:
            tied = nn.Linear(8, 8)
            earlier = [m for m in layers if isinstance(m, nn.Linear)]
            if earlier:
                tied.weight = draw(st.sampled_from(earlier)).weight
            layers.append(tied)
    model = nn.Sequential(*layers, nn.Linear(8, 3))
    for parameter in model.parameters():
        if draw(st.integers(0, 5)) == 0:
            parameter.requires_grad_(False)
    return model
