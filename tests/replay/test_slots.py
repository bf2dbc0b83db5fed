"""Places in a model, looked at quickly: what is seen, and what a pass does that is no change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as of_all_modules

import frostline as fl
from frostline.freezing.flags import NO_WISH
from frostline.freezing.modes import pin_of
from frostline.replay.compiled import called_modules
from frostline.replay.slots import Slots
from frostline.replay.stand_in import StandIns


def model() -> nn.Sequential:
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Linear(2, 2))
    net[1].note = None
    fl.freeze(net, all_but="1")
    return net


def change_wish(net: Any) -> None:
    pin_of(net[0][0]).wish = NO_WISH  # type: ignore[union-attr]


SEEN: dict[str, Callable[[Any], Any]] = {
    "parameter-added": lambda m: m[1].register_parameter("more", nn.Parameter(torch.ones(2))),
    "buffer-added": lambda m: m[0][0].register_buffer("more", torch.ones(2)),
    "hooks-replaced": lambda m: setattr(m[0], "_forward_hooks", OrderedDict({0: print})),
    "hook-for-all-modules": lambda m: of_all_modules.register_module_forward_hook(
        lambda *_: None, always_call=False
    ),
    "attribute-that-is-none-renamed": lambda m: (delattr(m[1], "note"), setattr(m[1], "n", None)),
    "what-a-pin-wants": change_wish,
    "mode-of-what-has-no-pin": lambda m: m[1].eval(),
    "frozen": lambda m: m[1].bias.requires_grad_(False),
}


def with_stand_ins(net: Any) -> None:
    StandIns(lambda *_: None).cover(called_modules(net))


NOT_SEEN: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda m: None,
    "mode-of-what-is-pinned": lambda m: m.train(),
    "stand-ins": with_stand_ins,
    "buffers-written": lambda m: m[0][1].running_mean.add_(1),
    "trained": lambda m: m[1].weight.data.add_(1),
}


@pytest.fixture(autouse=True)
def _no_global_hooks() -> Iterator[None]:
    yield
    of_all_modules._global_forward_hooks.clear()


@pytest.mark.parametrize("name", SEEN)
def test_seen(name: str) -> None:
    net = model()
    slots = Slots(net, set())
    assert slots.are_as_before()
    SEEN[name](net)
    assert not slots.are_as_before()


@pytest.mark.parametrize("name", NOT_SEEN)
def test_not_seen(name: str) -> None:
    net = model()
    slots = Slots(net, set())
    NOT_SEEN[name](net)
    assert slots.are_as_before()


def test_a_hook_for_all_modules_between_epochs_stops_replay() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    fl.freeze(net, "0")
    replayer, x = fl.Replayer(net), torch.randn(4, 2)
    for epoch in range(4):
        if epoch == 3:
            of_all_modules.register_module_forward_hook(lambda *_: None)
        with replayer.samples(range(4)):
            net(x)
    assert replayer.declined is not None
    assert "a hook for all modules" in replayer.declined
