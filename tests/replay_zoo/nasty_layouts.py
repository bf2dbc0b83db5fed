"""Frozen outputs of unusual layouts, that share memory or are written to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from replay_zoo.cuts import pictures
from replay_zoo.nasty import Net, Part, nasty, plain_net, plain_part
from replay_zoo.settings import Setting


def _told(kind: Any) -> Any:
    """A part that wraps its hidden state."""
    return lambda part, x: kind(plain_part(part, x))


def _read(how: Any) -> Any:
    """A net that reads the part's output before dropout and head."""
    return lambda net, x: net.head(net.drop(how(net.part(x))))


def _windows(part: Part, x: Tensor) -> Tensor:
    hidden = plain_part(part, x).contiguous()
    return hidden.as_strided((len(x), 3, 4), (8, 2, 1))


def _twice(part: Part, x: Tensor) -> tuple[Tensor, Tensor]:
    hidden = plain_part(part, x)
    return hidden, hidden


def _view_of_it(part: Part, x: Tensor) -> tuple[Tensor, Tensor]:
    hidden = plain_part(part, x)
    return hidden, hidden[:, :4]


def _writes_to_one(net: Net, x: Tensor) -> Tensor:
    first, second = net.part(x)
    first.mul_(2)
    return net.head(torch.cat([second, first], 1)[:, :8])


def _writes(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x)
    hidden += net.stem(x)
    hidden[:, 0] = 0
    return net.head(net.drop(hidden.relu_()))


def _writes_detached(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x)
    hidden.mul_(3).clamp_(-1, 1)
    return net.head(net.drop(hidden))


def _writes_input(part: Part, x: Tensor) -> Tensor:
    x.mul_(2)
    return plain_part(part, x)


def _input_after(net: Net, x: Tensor) -> Tensor:
    x = x.clone()
    return net.head(net.drop(net.part(x) + x))


def _appends(net: Net, x: Tensor) -> Tensor:
    values = net.part(x)
    values.append(net.stem(x))
    return net.head(torch.stack(values).sum(0))


class _Through(nn.Module):
    """An Identity between a frozen layer, a residual and a live one."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.Linear(8, 8), nn.Linear(8, 8)
        self.same = nn.Identity()
        self.flat = nn.Flatten(1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.same(self.flat(self.lower(x)))
        return self.head(self.same(hidden + self.upper(self.same(hidden))))


class _OwnParameter(nn.Module):
    """A frozen module that returns its parameter itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8))

    def forward(self) -> Tensor:
        return self.table


class _AddsParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lower, self.table = nn.Linear(8, 8), _OwnParameter()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lower(x) + self.table())


class _ChannelsLast(nn.Module):
    """A frozen convolution in channels-last, flattened by live code in memory order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.next = nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x).contiguous(memory_format=torch.channels_last)
        return self.head(torch.relu(self.next(hidden)).mean((2, 3)))


SETTINGS: list[Setting] = [
    nasty(
        "list",
        "a list to which live code appends",
        "identical",
        part=_told(lambda h: [h, 2 * h]),
        net=_appends,
        trains=("head", "stem"),
    ),
    nasty(
        "channels-last",
        "a frozen output in channels-last",
        "identical",
        make=_ChannelsLast,
        batch=pictures,
        trains=("head", "next"),
    ),
    nasty(
        "transposed",
        "an output that is not contiguous",
        "identical",
        part=_told(lambda h: h.t().contiguous().t()),
        net=_read(lambda out: out),
    ),
    nasty(
        "windows",
        "overlapping windows by as_strided",
        "either",
        part=_windows,
        net=_read(lambda out: out.reshape(len(out), 12)[:, :8]),
    ),
    nasty(
        "expanded",
        "an expanded output",
        "identical",
        part=_told(lambda h: h.mean(1, keepdim=True).expand(-1, 8)),
        net=_read(lambda o: o),
    ),
    nasty(
        "sparse",
        "a sparse output",
        "either",
        part=_told(lambda h: torch.relu(h).to_sparse()),
        net=_read(lambda out: out.to_dense()),
    ),
    nasty(
        "empty",
        "an output of no size beside the real one",
        "identical",
        part=_told(lambda h: (h, h[:, :0])),
        net=_read(lambda out: torch.cat(out, 1)),
    ),
    nasty(
        "twice",
        "the same tensor twice, and live code writes to one",
        "either",
        part=_twice,
        net=_writes_to_one,
    ),
    nasty(
        "view-of-it",
        "a tensor and a view of it, and live code writes to it",
        "either",
        part=_view_of_it,
        net=_writes_to_one,
    ),
    nasty(
        "written",
        "live code writes into the frozen output",
        "identical",
        net=_writes,
        trains=("head", "stem"),
    ),
    nasty(
        "written-plainly",
        "live code writes into the frozen output what is not live",
        "identical",
        net=_writes_detached,
    ),
    nasty(
        "writes-input",
        "the frozen part writes into its input",
        "either",
        part=_writes_input,
        net=_input_after,
    ),
    nasty(
        "through",
        "an Identity hands frozen and live values through",
        "identical",
        make=_Through,
        trains=("head", "upper"),
    ),
    nasty(
        "own-parameter",
        "a frozen module that returns its parameter",
        "identical",
        make=_AddsParameter,
    ),
    nasty(
        "handed-through",
        "the part returns its input beside its output",
        "identical",
        part=lambda part, x: (plain_part(part, x), x),
        net=_read(lambda out: out[0] + out[1]),
    ),
    nasty("plain", "nothing at all", "identical", net=plain_net),
]
