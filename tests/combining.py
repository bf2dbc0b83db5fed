"""A network with every hazard, and a loop, for freezing together with other tools."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import frostline as fl

WIDTH = 16
FROZEN = ["stem", "blocks.0", "blocks.1"]


class Block(nn.Module):
    """Residual, with statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.up = nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(0.2)
        self.down = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.drop(torch.tanh(self.up(self.norm(x)))))


class Network(nn.Module):
    """``(batch, 16)`` in, 3 logits out; ``reentrant`` recomputes the blocks in backward."""

    def __init__(self, *, reentrant: bool | None = None) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def network(**options: bool | None) -> Network:
    """Always the same weights, in train mode."""
    torch.manual_seed(0)
    return Network(**options).train()


def batch(step: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Inputs and classes of a step."""
    generator = torch.Generator().manual_seed(step)
    return (
        torch.randn(size, WIDTH, generator=generator),
        torch.randint(3, (size,), generator=generator),
    )


def loss_of(model: Callable[[Tensor], Tensor], step: int) -> Tensor:
    """The loss of a step's batch, dropout drawn anew from its number."""
    inputs, targets = batch(step)
    torch.manual_seed(step)
    return nn.functional.cross_entropy(model(inputs), targets)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return fl.optimizer(torch.optim.SGD, model, lr=0.1, momentum=0.9, declare_all=True)


def train(
    model: nn.Module, steps: int = 3, *, loss: Callable[[nn.Module, int], Tensor] = loss_of
) -> list[float]:
    """The losses of some steps."""
    optimizer, losses = sgd(model), []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(model, step)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def bits(model: nn.Module) -> dict[str, str]:
    """The fingerprints of all parameters and buffers."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name.replace("_orig_mod.", ""): fl.fingerprint(tensor) for name, tensor in named}
