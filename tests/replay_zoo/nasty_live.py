"""Live code that notices a pass made twice, and replayed tensors that are not like new."""

from __future__ import annotations

import itertools
import random
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from replay_zoo.nasty import Net, Part, nasty, plain_net, plain_part, scored
from replay_zoo.settings import Setting


def _live(run: Any, **attributes: Any) -> Any:
    """A net with something more on it; makers are called for each new net."""

    def make() -> nn.Module:
        net = Net(Part(plain_part), run)
        for name, maker in attributes.items():
            setattr(net, name, maker())
        return net

    return make


def _counts(net: Net, x: Tensor) -> Tensor:
    net.calls += 1
    return plain_net(net, x) * (1 + net.calls / 10)


def _draws_python(net: Net, x: Tensor) -> Tensor:
    return plain_net(net, x) * (1 + random.random())


def _draws_numpy(net: Net, x: Tensor) -> Tensor:
    return plain_net(net, x) * (1 + float(np.random.rand()))


def _draws_own(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x)
    return net.head(hidden + torch.randn(hidden.shape, generator=net.generator))


def _reads_on(net: Net, x: Tensor) -> Tensor:
    return plain_net(net, x) * next(net.factors)


def _normalises(net: Net, x: Tensor) -> Tensor:
    return net.head(net.norm(net.part(x)))


def _queues(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x)
    scores = net.stem(hidden) @ net.queue.clone().t()
    net.queue.copy_(torch.cat([net.queue[len(hidden) :], hidden]))
    return net.head(hidden) + scores.mean(1, keepdim=True)


def _keeps_last(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x)
    before, net.last = net.last, hidden
    shift = 0.0 if before is None else before.mean()
    return net.head(net.drop(hidden * 1.0 + shift))


def _writes_last(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x)
    if net.last is not None:
        net.last.zero_()
    net.last = hidden
    return net.head(net.drop(hidden))


def _asks_gradients(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x)
    seen = hidden.requires_grad + 2 * hidden.is_leaf + 4 * (hidden.grad_fn is None)
    return net.head(net.drop(hidden)) * (1 + seen)


def _asks_layout(net: Net, x: Tensor) -> Tensor:
    hidden = net.part(x)
    seen = hidden.stride(0) + 3 * hidden.is_contiguous() + hidden.storage_offset()
    return net.head(net.drop(hidden)) * (1 + seen / 10)


def _tied_transposed(net: Net, x: Tensor) -> Tensor:
    hidden = functional.linear(net.stem(net.part(x)), net.part.fc1.weight.t())
    return net.head(net.drop(hidden))


def _forces_train(part: Part, x: Tensor) -> Tensor:
    part.drop.train()
    return plain_part(part, part.drop(x))


def _same_twice(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    first, second = model(batch["x"]), model(batch["x"])
    return scored(first, batch) + scored(second, batch) + (first - second).square().mean()


def _by_turns(model: Any, batch: dict[str, Tensor]) -> Tensor:
    if model.epoch % 2:
        return scored(model.head(model.part(batch["x"])), batch)
    return scored(model(batch["x"]), batch)


def _tell_epoch(model: Any, epoch: int) -> None:
    model.epoch = epoch


def _writes_batch(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    batch["x"].mul_(2)
    loss = scored(model(batch["x"]), batch)
    batch["x"].zero_()
    return loss


class _Wrapped(nn.Module):
    """What launchers put around a model."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Net(Part(plain_part), plain_net)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def _patched() -> nn.Module:
    net = Net(Part(plain_part), plain_net)
    original = net.part.fc1.forward
    net.part.fc1.forward = types.MethodType(lambda layer, x: original(x) * 2, net.part.fc1)
    return net


SETTINGS: list[Setting] = [
    nasty("live-counts", "the root counts its passes", "identical", make=_live(_counts, calls=int)),
    nasty("live-python", "the root draws with Python", "identical", net=_draws_python),
    nasty("live-numpy", "the root draws with NumPy", "identical", net=_draws_numpy),
    nasty(
        "live-generator",
        "the root draws from a generator of its own",
        "identical",
        make=_live(_draws_own, generator=lambda: torch.Generator().manual_seed(5)),
    ),
    nasty(
        "live-iterator",
        "the root reads on in an iterator, which can't be copied or wound back",
        "either",
        make=_live(_reads_on, factors=lambda: (1 + i / 9 for i in itertools.count())),
    ),
    nasty(
        "live-norm",
        "BatchNorm in the live part: its statistics move once a step",
        "identical",
        make=_live(_normalises, norm=lambda: nn.BatchNorm1d(8)),
        trains=("head", "norm"),
    ),
    nasty(
        "queue",
        "a queue of frozen features of earlier batches",
        "identical",
        make=_live(_queues, queue=lambda: nn.Buffer(torch.zeros(10, 8))),
        trains=("head", "stem"),
    ),
    nasty(
        "keeps-last",
        "live code still holds the frozen output of the step before",
        "identical",
        make=_live(_keeps_last, last=lambda: None),
    ),
    nasty(
        "writes-last",
        "live code clears the frozen output of the step before",
        "identical",
        make=_live(_writes_last, last=lambda: None),
    ),
    nasty(
        "asks-gradients",
        "live code asks whether the frozen output has gradients",
        "identical",
        net=_asks_gradients,
    ),
    nasty(
        "asks-layout",
        "live code asks for strides",
        "identical",
        part=lambda part, x: plain_part(part, x).t().contiguous().t(),
        net=_asks_layout,
    ),
    nasty(
        "tied-transposed",
        "frozen weights, transposed, on live values",
        "identical",
        net=_tied_transposed,
        trains=("head", "stem"),
    ),
    nasty(
        "forces-train",
        "the frozen part puts its dropout in train mode",
        "either",
        part=_forces_train,
        attributes=lambda: {"drop": nn.Dropout(0.3)},
    ),
    nasty(
        "same-twice", "the same batch twice, through live dropout", "identical", loss=_same_twice
    ),
    nasty(
        "by-turns",
        "the loop calls the model in one epoch, its parts in the next",
        "either",
        loss=_by_turns,
        before_epoch=_tell_epoch,
    ),
    nasty("writes-batch", "the loop writes into the batch", "identical", loss=_writes_batch),
    nasty("wrapped", "a wrapper around the model", "identical", make=_Wrapped),
    nasty("patched", "a frozen layer whose forward was replaced", "identical", make=_patched),
]
