"""What is seen of a model's changes, and what does not count as one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.replay.compiled import called_modules
from frostline.replay.stand_in import StandIns
from frostline.replay.watch import Setting, State, Watch, changed_settings, look

FACTOR = 2.0
_limit = 1.0


class Body(nn.Module):
    """Something in every kind of attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.1)
        self.register_buffer("table", torch.ones(4))
        self.number, self.text, self.nothing = 1.5, "a", None
        self.items, self.names = [1, [2]], {"a": {"k": 1}}
        self.chosen = {1, 2}
        self.settings = SimpleNamespace(k=1, inner=SimpleNamespace(k=1))
        self.plain, self.array = torch.ones(3), np.ones(3)
        self.function: Callable[[Tensor], Tensor] = torch.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(self.drop(self.fc(x)))) * self.table * FACTOR


class Sub(Body):
    """The same, as another class."""


def model() -> nn.Sequential:
    net = nn.Sequential(Body(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    return net


def replace_parameter(net: Any) -> None:
    net[0].fc.weight = nn.Parameter(net[0].fc.weight.clone(), requires_grad=False)


def change_global(_: Any) -> None:
    globals()["FACTOR"] = 3.0


Change = Callable[[Any], Any]

SEEN: dict[str, tuple[str, Change]] = {
    "frozen": ("tensors", lambda m: m[1].weight.requires_grad_(False)),
    "thawed": ("tensors", lambda m: m[0].fc.bias.requires_grad_(True)),
    "parameter-replaced": ("tensors", replace_parameter),
    "parameter-taken-away": ("tensors", lambda m: setattr(m[0].fc, "bias", None)),
    "buffer-replaced": ("any", lambda m: setattr(m[0], "table", torch.zeros(4))),
    "buffer-replaced-past-setattr": (
        "any",
        lambda m: m[0].norm._buffers.update(running_var=torch.zeros(4)),
    ),
    "eval-mode": ("modes", lambda m: m.eval()),
    "eval-mode-of-one": ("modes", lambda m: m[0].drop.eval()),
    "class": ("modes", lambda m: setattr(m[0], "__class__", Sub)),
    "forward-replaced": ("modes", lambda m: setattr(m[0], "forward", lambda x: x)),
    "hook": ("modes", lambda m: m[0].fc.register_forward_hook(lambda *_: None)),
    "pre-hook": ("modes", lambda m: m[0].fc.register_forward_pre_hook(lambda *_: None)),
    "module-replaced": ("modes", lambda m: setattr(m[0], "drop", nn.Dropout(0.1))),
    "module-added": ("modes", lambda m: m[0].add_module("more", nn.ReLU())),
    "module-taken-away": ("modes", lambda m: setattr(m[0], "drop", None)),
    "modules-swapped": (
        "modes",
        lambda m: m._modules.update({"0": m[1], "1": m[0]}),
    ),
    "number": ("settings", lambda m: setattr(m[0], "number", 2.5)),
    "text": ("settings", lambda m: setattr(m[0], "text", "b")),
    "none": ("settings", lambda m: setattr(m[0], "nothing", 1)),
    "attribute-added": ("settings", lambda m: setattr(m[0], "late", 1)),
    "attribute-deleted": ("settings", lambda m: delattr(m[0], "number")),
    "attribute-renamed": (
        "settings",
        lambda m: (setattr(m[0], "other", 1.5), delattr(m[0], "number")),
    ),
    "of-torch": ("settings", lambda m: setattr(m[0].drop, "p", 0.5)),
    "list": ("settings", lambda m: m[0].items.append(3)),
    "list-in-list": ("settings", lambda m: m[0].items[1].append(3)),
    "dict-in-dict": ("settings", lambda m: m[0].names["a"].update(k=2)),
    "set": ("settings", lambda m: m[0].chosen.add(3)),
    "namespace": ("settings", lambda m: setattr(m[0].settings, "k", 2)),
    "namespace-in-namespace": ("settings", lambda m: setattr(m[0].settings.inner, "k", 2)),
    "tensor-written": ("settings", lambda m: m[0].plain.add_(1)),
    "tensor-replaced": ("settings", lambda m: setattr(m[0], "plain", torch.ones(3))),
    "array-written": ("settings", lambda m: m[0].array.__setitem__(0, 5.0)),
    "function-replaced": ("settings", lambda m: setattr(m[0], "function", torch.tanh)),
    "global-variable": ("outside", change_global),
}


def train(net: Any) -> None:
    optimizer = torch.optim.SGD(net[1].parameters(), lr=0.1)
    net[1](torch.randn(3, 4)).sum().backward()
    optimizer.step()


def with_stand_ins(net: Any) -> None:
    stand_ins = StandIns(lambda *_: None)
    stand_ins.cover(called_modules(net))


def change_other_global(_: Any) -> None:
    globals()["_limit"] = 2.0


NOT_SEEN: dict[str, Change] = {
    "nothing": lambda m: None,
    "training-the-head": train,
    "forward-in-eval-mode": lambda m: copy.deepcopy(m).eval()(torch.ones(2, 4)),
    "batch-norm-that-counts": lambda m: m[0].norm(torch.randn(5, 4)),
    "gradients": lambda m: setattr(m[1].weight, "grad", torch.ones(2, 4)),
    "content-of-parameters": lambda m: m[1].weight.data.add_(1),
    "stand-ins": with_stand_ins,
    "same-value": lambda m: setattr(m[0], "number", 1.5),
    "global-that-is-not-mentioned": change_other_global,
    "backward-hook": lambda m: m[0].register_full_backward_hook(lambda *_: None),
}


@pytest.fixture(autouse=True)
def _globals() -> Iterator[None]:
    yield
    globals().update(FACTOR=2.0, _limit=1.0)


def differing(before: State, after: State) -> set[str]:
    return {part for part in State._fields if getattr(before, part) != getattr(after, part)}


@pytest.mark.parametrize("name", SEEN)
def test_seen(name: str) -> None:
    where, change = SEEN[name]
    net = model()
    watch, alone = Watch(net), look(net)
    before = watch.look()
    change(net)
    after = watch.look()
    assert after is not before
    found = differing(before, after)
    if where == "any":
        assert found
    elif where == "outside":
        assert found == {"settings"}
        assert differing(alone, look(net)) == set()
    else:
        assert where in found
        assert differing(alone, look(net)) == found
    assert watch.look() is after


@pytest.mark.parametrize("name", NOT_SEEN)
def test_not_seen(name: str) -> None:
    net = model()
    watch, alone = Watch(net), look(net)
    before = watch.look()
    NOT_SEEN[name](net)
    assert differing(before, watch.look()) == set()
    assert differing(alone, look(net)) == set()


def test_pinned_modules_are_in_eval_mode_whatever_is_said() -> None:
    net = model()
    fl.freeze(net, all_but="1", gradients="drop")
    watch = Watch(net)
    net[0].eval()
    before = watch.look()
    net.train()
    assert watch.look().modes[1:] == before.modes[1:]


def test_what_is_put_back_is_as_before() -> None:
    net = model()
    watch = Watch(net)
    before = watch.look()
    net[0].number = 3.0
    assert watch.look() != before
    net[0].number = 1.5
    assert watch.look() == before


def test_what_is_ignored() -> None:
    net = model()
    watch = Watch(net)
    before = watch.look()
    net[0].number = 3.0
    (setting,) = changed_settings(before, watch.look())
    assert setting == Setting(id(net[0]), "number", 3.0)
    watch.ignore(setting)
    ignored = watch.look()
    net[0].number = 4.0
    assert watch.look() is ignored
    net[0].text = "other"
    assert [s.name for s in changed_settings(ignored, watch.look())] == ["text"]


def test_a_global_variable_that_is_ignored() -> None:
    net = model()
    watch = Watch(net)
    before = watch.look()
    globals()["FACTOR"] = 3.0
    (setting,) = changed_settings(before, watch.look())
    assert setting == Setting(0, "FACTOR", 3.0)
    watch.ignore(setting)
    ignored = watch.look()
    globals()["FACTOR"] = 4.0
    assert differing(ignored, watch.look()) == set()


def test_a_closure_is_looked_into() -> None:
    factor = 2.0

    class Closed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * factor

    net = Closed()
    watch = Watch(net)
    before = watch.look()
    factor = 3.0
    assert [s.value for s in changed_settings(before, watch.look())] == [3.0]


def test_a_module_that_is_added_is_watched() -> None:
    net = model()
    watch = Watch(net)
    net[0].more = Body()
    before = watch.look()
    net[0].more.settings.k = 5
    assert differing(before, watch.look()) == {"settings"}


def test_a_module_that_holds_its_parent_in_an_object() -> None:
    net = model()
    net[0].settings.owner = net
    watch = Watch(net)
    before = watch.look()
    assert watch.look() is before
