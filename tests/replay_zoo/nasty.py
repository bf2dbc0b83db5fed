"""What the nasty settings are built from: a frozen part, a live head, and a function for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from replay_zoo.cuts import classified, vectors
from replay_zoo.settings import Setting

WIDTH = 8
Expected = Literal["identical", "declined", "either", "rounding", "stopped"]
"""``rounding``: either, or replayed within rounding and reported so. ``stopped``: either, or an
error that ends the run, where nothing but a later audit can see the change."""

_RULINGS: Mapping[Expected, frozenset[str]] = {
    "identical": frozenset({"identical"}),
    "declined": frozenset({"declined"}),
    "either": frozenset({"identical", "declined"}),
    "rounding": frozenset({"identical", "declined", "rounding"}),
    "stopped": frozenset({"identical", "declined", "stopped"}),
}


class Part(nn.Module):
    """Two linear layers and a function of them: what is frozen."""

    def __init__(self, run: Callable[..., Any], **attributes: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, WIDTH)
        self.fc2 = nn.Linear(WIDTH, WIDTH)
        self.run = run
        for name, value in attributes.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value.clone())
            else:
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


class Net(nn.Module):
    """A stem, a part, dropout and a head, and a function of them: the model."""

    def __init__(self, part: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.part = part
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(WIDTH, 3)
        self.run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def plain_part(part: Part, x: Tensor) -> Tensor:
    """Nothing nasty: two layers with a tanh between."""
    return part.fc2(torch.tanh(part.fc1(x)))


def plain_net(net: Net, x: Tensor) -> Tensor:
    """Nothing nasty: the part, dropout, the head."""
    return net.head(net.drop(net.part(x)))


def nasty(
    name: str,
    why: str,
    expects: Expected,
    *,
    part: Callable[..., Any] = plain_part,
    net: Callable[..., Any] = plain_net,
    make: Callable[[], nn.Module] | None = None,
    attributes: Callable[[], Mapping[str, Any]] = dict,
    batch: Callable[[int], Any] = vectors,
    trains: tuple[str, ...] | None = ("head",),
    loss: Callable[[nn.Module, Any], Tensor] = classified,
    **fields: Any,
) -> Setting:
    """A setting that is meant to mislead replay.

    Args:
        name: what is nasty, in two or three words.
        why: the same in a line.
        expects: which rulings are right.
        part: what the frozen part computes.
        net: what the model computes.
        make: builds the model, instead of the two above.
        attributes: what is set on the part; tensors become buffers.
        batch: its data.
        trains: what is not frozen.
        loss: the forward pass of a step.
        fields: further fields of the setting.
    """
    return Setting(
        name=f"nasty/{name}",
        nasty=why,
        expects=_RULINGS[expects],
        make=make or (lambda: Net(Part(part, **attributes()), net)),
        batch=batch,
        trains=trains,
        loss=loss,
        **fields,
    )


def scored(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross entropy, for losses of one's own."""
    return functional.cross_entropy(logits, batch["y"])
