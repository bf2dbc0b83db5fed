"""Randomness in and around the frozen part."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from replay_zoo.nasty import Net, Part, nasty, plain_part
from replay_zoo.settings import Setting


def _functional_dropout(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, functional.dropout(x, 0.3, training=True))


def _late_dropout(part: Part, x: Tensor) -> Tensor:
    return functional.dropout(plain_part(part, x), 0.3, training=True)


def _noise(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x + 0.1 * torch.randn_like(x))


def _drop_path(part: Part, x: Tensor) -> Tensor:
    keep = torch.rand(x.shape[0], 1) > 0.3
    return x + plain_part(part, x * keep)


def _permuted(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x[:, torch.randperm(x.shape[1])])


def _rrelu(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, functional.rrelu(x, training=True))


def _gumbel(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, functional.gumbel_softmax(x, hard=True))


def _numpy_noise(part: Part, x: Tensor) -> Tensor:
    noise = torch.from_numpy(np.random.randn(*x.shape)).float()
    return plain_part(part, x + 0.1 * noise)


def _python_random(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x * (1 + random.random()))


def _own_generator(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x + 0.1 * torch.randn(x.shape, generator=part.generator))


def _seeded_noise(part: Part, x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return plain_part(part, x + torch.randn(1, x.shape[1], generator=generator))


def _forked_noise(part: Part, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise = torch.randn_like(x)
    return plain_part(part, x + noise)


def _draws_in_vain(part: Part, x: Tensor) -> Tensor:
    torch.rand(3)
    return plain_part(part, x)


class _SharedDropout(nn.Module):
    """One Dropout in a frozen block and before the head."""

    def __init__(self) -> None:
        super().__init__()
        drop = nn.Dropout(0.2)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), drop)
        self.last = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), drop)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.block(x)))


def _noise_before(net: Net, x: Tensor) -> Tensor:
    noise = torch.randn_like(x)
    hidden = net.part(x)
    return net.head(net.drop(hidden + noise * net.stem(x)))


def _random_skip(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x) if torch.rand(()).item() > 0.5 else x
    return net.head(net.drop(hidden))


def _mixed_late(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x)
    return net.head(0.7 * hidden + 0.3 * hidden[torch.randperm(len(hidden))])


def _mixed_early(net: Net, x: Tensor) -> Tensor:
    return net.head(net.part(0.7 * x + 0.3 * x[torch.randperm(len(x))]))


def _masked_input(net: Net, x: Tensor) -> Tensor:
    return net.head(net.part(net.drop(x)))


SETTINGS: list[Setting] = [
    nasty(
        "functional-dropout",
        "functional dropout that is always on",
        "declined",
        part=_functional_dropout,
    ),
    nasty(
        "late-dropout",
        "the same as the last thing that the frozen part does",
        "either",
        part=_late_dropout,
    ),
    nasty("noise", "Gaussian noise on the input of the frozen part", "declined", part=_noise),
    nasty("drop-path", "samples dropped at random, whatever the mode", "declined", part=_drop_path),
    nasty("permuted", "columns in random order", "declined", part=_permuted),
    nasty("rrelu", "random slopes, whatever the mode", "declined", part=_rrelu),
    nasty("gumbel", "a random choice by Gumbel noise", "declined", part=_gumbel),
    nasty("numpy-noise", "noise that NumPy draws", "declined", part=_numpy_noise),
    nasty("python-random", "a factor that Python draws", "declined", part=_python_random),
    nasty(
        "own-generator",
        "noise from a generator that the part keeps",
        "declined",
        part=_own_generator,
        attributes=lambda: {"generator": torch.Generator().manual_seed(7)},
    ),
    nasty("seeded-noise", "noise that is the same at every call", "either", part=_seeded_noise),
    nasty(
        "forked-noise",
        "seeded noise that goes by the place in the batch",
        "declined",
        part=_forked_noise,
    ),
    nasty(
        "draws-in-vain",
        "random numbers that nobody uses, but the stream moves",
        "either",
        part=_draws_in_vain,
    ),
    nasty(
        "shared-dropout",
        "one Dropout, frozen in one place and live in another",
        "identical",
        make=_SharedDropout,
        trains=("head", "last"),
    ),
    nasty(
        "noise-before",
        "live noise drawn before the frozen part runs",
        "identical",
        net=_noise_before,
        trains=("head", "stem"),
    ),
    nasty(
        "random-skip",
        "live code calls the frozen part or not, at random",
        "either",
        net=_random_skip,
    ),
    nasty(
        "mixed-late", "frozen features mixed at random by live code", "identical", net=_mixed_late
    ),
    nasty(
        "mixed-early", "inputs mixed at random before the frozen part", "declined", net=_mixed_early
    ),
    nasty(
        "masked-input",
        "dropout of the live root before the frozen part",
        "declined",
        net=_masked_input,
    ),
]
