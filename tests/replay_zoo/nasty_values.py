"""Frozen outputs of unusual kinds and types."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from replay_zoo.nasty import Net, Part, nasty, plain_part
from replay_zoo.settings import Setting


class _Opaque:
    """Holds a tensor where nobody would look."""

    __slots__ = ("_inside",)

    def __init__(self, inside: Tensor) -> None:
        self._inside = inside

    def reveal(self) -> Tensor:
        return self._inside


@dataclass
class _Inner:
    values: list[Tensor]
    note: str


@dataclass
class _Outer:
    inner: _Inner
    mask: Tensor | None = None


class _Named(NamedTuple):
    hidden: Tensor
    count: int


class _Output(OrderedDict[str, Any]):
    """A dictionary whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def _told(kind: Any) -> Any:
    """A part that wraps its hidden state."""
    return lambda part, x: kind(plain_part(part, x))


def _read(how: Any) -> Any:
    """A net that reads the part's output before dropout and head."""
    return lambda net, x: net.head(net.drop(how(net.part(x))))


def _generator(part: Part, x: Tensor) -> Iterator[Tensor]:
    for layer in (part.fc1, part.fc2):
        x = torch.tanh(layer(x))
        yield x


def _nothing_back(part: Part, x: Tensor) -> None:
    part.fc1(x)


def _ignores(net: Net, x: Tensor) -> Tensor:
    assert net.part(x) is None
    return net.head(net.drop(x))


def _branches_on_text(net: Net, x: Tensor) -> Tensor:
    hidden, word = net.part(x)
    return net.head(net.drop(hidden if word == "plain" else -hidden))


def _through_numpy(part: Part, x: Tensor) -> Tensor:
    return part.fc2(torch.from_numpy(part.fc1(x).detach().numpy() * 2))


def _through_lists(part: Part, x: Tensor) -> Tensor:
    rows = [[abs(value) for value in row] for row in part.fc1(x).tolist()]
    return part.fc2(torch.tensor(rows))


def _through_input_lists(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, torch.tensor([[round(v, 2) for v in row] for row in x.tolist()]))


def _odd_values(part: Part, x: Tensor) -> Tensor:
    hidden = plain_part(part, x)
    hidden[:, 0] = float("nan")
    hidden[:, 1] = float("-inf")
    hidden[:, 2] = -0.0
    return hidden


def _mends(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x)
    sign = torch.where(torch.signbit(hidden[:, 2]), 1.0, 2.0)[:, None]
    return net.head(torch.nan_to_num(hidden, neginf=-1.0) * sign)


class _Double(nn.Module):
    """A frozen body of another type than the head's."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).to(dtype)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.to(self.dtype)).float())


def _autocast_inside(part: Part, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return part.fc2(torch.tanh(part.fc1(x)))


def _codes(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x).argmax(-1)


class _Embeds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.embed, self.head = Part(_codes), nn.Embedding(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(self.part(x)))


SETTINGS: list[Setting] = [
    nasty(
        "opaque",
        "an object that hides its tensor",
        "either",
        part=_told(_Opaque),
        net=_read(lambda out: out.reveal()),
    ),
    nasty(
        "generator",
        "a generator that computes as it is read",
        "either",
        part=_generator,
        net=_read(lambda out: sum(out)),
    ),
    nasty(
        "nothing-back", "the frozen part returns None", "either", part=_nothing_back, net=_ignores
    ),
    nasty(
        "dataclasses",
        "a dataclass in a dataclass, with a list inside",
        "either",
        part=_told(lambda h: _Outer(_Inner([h, -h], "note"))),
        net=_read(lambda out: out.inner.values[0] - out.inner.values[1]),
    ),
    nasty(
        "named-tuple",
        "a NamedTuple with a number",
        "identical",
        part=_told(lambda h: _Named(h, 3)),
        net=_read(lambda out: out.hidden * out.count),
    ),
    nasty(
        "dict-subclass",
        "a dictionary with attributes",
        "either",
        part=_told(lambda h: _Output(hidden=h, none=None)),
        net=_read(lambda out: out.hidden),
    ),
    nasty(
        "text",
        "a word that decides what live code does",
        "identical",
        part=_told(lambda h: (h, "plain")),
        net=_branches_on_text,
    ),
    nasty(
        "text-of-batch",
        "a word that depends on the batch",
        "either",
        part=_told(lambda h: (h, "plain" if h.sum() > 0 else "turned")),
        net=_branches_on_text,
    ),
    nasty("through-numpy", "through NumPy and back", "either", part=_through_numpy),
    nasty("through-lists", "through Python's lists and back", "either", part=_through_lists),
    nasty(
        "input-through-lists",
        "the input goes through lists first",
        "either",
        part=_through_input_lists,
    ),
    nasty(
        "complex",
        "complex numbers",
        "identical",
        part=_told(torch.fft.fft),
        net=_read(lambda out: out.real + out.imag),
    ),
    nasty(
        "codes",
        "integers that choose live embeddings",
        "identical",
        make=_Embeds,
        trains=("head", "embed"),
    ),
    nasty(
        "mask",
        "truth values",
        "identical",
        part=_told(lambda h: h > 0),
        net=lambda net, x: net.head(net.drop(x.masked_fill(net.part(x), 0.0))),
    ),
    nasty("float64", "the frozen part in double", "identical", make=lambda: _Double(torch.float64)),
    nasty(
        "bfloat16", "the frozen part in bfloat16", "identical", make=lambda: _Double(torch.bfloat16)
    ),
    nasty(
        "autocast-inside",
        "autocast within the frozen part",
        "identical",
        part=_autocast_inside,
        net=_read(lambda out: out.float()),
    ),
    nasty("odd-values", "NaN, infinity and minus zero", "identical", part=_odd_values, net=_mends),
    nasty(
        "number",
        "a Python number of the batch beside the real one",
        "either",
        part=_told(lambda h: (h, h.mean().item())),
        net=_read(lambda out: out[0] * out[1]),
    ),
]
