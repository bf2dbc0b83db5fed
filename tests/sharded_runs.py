"""A network that is sharded over two ranks, and what it is trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

import frostline as fl

WIDTH = 6


class Block(nn.Module):
    """Residual, with statistics that a freeze has to hold; 5 rows do not divide by two ranks."""

    def __init__(self, inner: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm = norm(WIDTH)
        self.up = nn.Linear(WIDTH, inner)
        self.down = nn.Linear(inner, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Network(nn.Module):
    """``(batch, 6)`` in, 3 logits out; the head is the root's own, so FSDP2 leaves it gathered."""

    def __init__(self, inner: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.Sequential(*(Block(inner, norm) for _ in range(3)))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def network(*, inner: int = 5, norm: type[nn.Module] = nn.BatchNorm1d) -> Network:
    """Always the same weights."""
    torch.manual_seed(0)
    return Network(inner, norm)


def mesh() -> DeviceMesh:
    """All ranks in a row."""
    return init_device_mesh("cpu", (distributed.get_world_size(),))


def shard(model: Network, **options: Any) -> Network:
    """Each block a group of its own, the rest the root's."""
    over = mesh()
    for block in model.blocks:
        fully_shard(block, mesh=over, **options)
    fully_shard(model, mesh=over, **options)
    return model


def batch(step: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Eight samples, of which a rank takes its part."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, WIDTH, generator=generator)
    targets = torch.randint(3, (8,), generator=generator)
    return inputs[part], targets[part]


def half(rank: int) -> slice:
    """A rank's part of the batch."""
    return slice(4 * rank, 4 * rank + 4)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    part: slice = slice(None),
) -> None:
    for step in steps:
        inputs, targets = batch(step, part)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return fl.optimizer(torch.optim.SGD, model, lr=0.1, momentum=0.9, declare_all=True)


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """The parameters, whole, on every rank."""
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }


def bits(model: nn.Module) -> dict[str, str]:
    """The parameters' fingerprints, of the whole ones."""
    return {name: fl.fingerprint(tensor) for name, tensor in gathered(model).items()}
