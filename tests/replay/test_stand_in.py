"""Forwards are taken the place of, and given back."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.replay.compiled import called_modules
from frostline.replay.stand_in import StandIn, StandIns


class Doubles(nn.Module):
    """Twice the input; of a module that pickle can find."""

    def forward(self, x: Any, *, plus: int = 0) -> Any:
        return 2 * x + plus


def model() -> nn.Sequential:
    return nn.Sequential(Doubles(), Doubles())


class Handler:
    """Notes the calls, and makes them."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, name: str, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.calls.append((name, module, args, kwargs))
        return forward(*args, **kwargs)

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]


def test_calls_are_handed_over() -> None:
    net, handle = model(), Handler()
    with StandIns(handle) as stand_ins:
        stand_ins.cover(called_modules(net))
        assert net[1](3, plus=1) == 7
        assert handle.calls == [("1", net[1], (3,), {"plus": 1})]
        assert net(3) == 12
    assert handle.names == ["1", "", "0", "1"]


def test_a_handler_may_leave_the_call_out() -> None:
    net = model()
    with StandIns(lambda name, *_: name) as stand_ins:
        stand_ins.cover({"1": net[1]})
        assert net(3) == "1"


def test_hooks_run_as_ever() -> None:
    net, order = Doubles(), list[str]()
    net.register_forward_pre_hook(lambda *_: order.append("before"))
    net.register_forward_hook(lambda *_: order.append("after"))
    with StandIns(lambda *_: order.append("call")) as stand_ins:
        stand_ins.cover({"": net})
        net(1)
    assert order == ["before", "call", "after"]


def test_afterwards_all_is_as_before() -> None:
    net = model()
    before = [dict(vars(module)) for module in net.modules()]
    with pytest.raises(KeyError), StandIns(Handler()) as stand_ins:  # noqa: PT012
        stand_ins.cover(called_modules(net))
        raise KeyError
    assert [dict(vars(module)) for module in net.modules()] == before


def test_covered_twice_is_called_once() -> None:
    net, handle = model(), Handler()
    with StandIns(handle) as stand_ins:
        stand_ins.cover({"0": net[0]})
        stand_ins.cover({"0": net[0], "1": net[1]})
        net(1)
    assert handle.names == ["0", "1"]
    assert "forward" not in vars(net[0])


def test_a_forward_of_the_instance() -> None:
    net, handle = Doubles(), Handler()
    own = net.forward = lambda x: -x  # type: ignore[method-assign]
    with StandIns(handle) as stand_ins:
        stand_ins.cover({"": net})
        assert net(1) == -1
    assert handle.names == [""]
    assert vars(net)["forward"] is own


def test_nested() -> None:
    net, outer, inner = model(), Handler(), Handler()
    with StandIns(outer) as one:
        one.cover({"0": net[0]})
        with StandIns(inner) as other:
            other.cover(called_modules(net))
            assert net(3) == 12
        assert (outer.names, inner.names) == (["0"], ["", "0", "1"])
        net(3)
        assert (outer.names, inner.names) == (["0", "0"], ["", "0", "1"])
    assert "forward" not in vars(net[0])


def test_the_outer_ones_may_be_closed_first() -> None:
    net, outer, inner = model(), Handler(), Handler()
    one, other = StandIns(outer), StandIns(inner)
    one.cover({"0": net[0]})
    other.cover({"0": net[0]})
    one.__exit__()
    other.__exit__()
    outer.calls.clear()
    assert net(3) == 12
    assert (outer.names, inner.names) == ([], [])
    assert "forward" not in vars(net[0])


def test_somebody_replaced_forward_meanwhile() -> None:
    net, handle = model(), Handler()

    def own(x: Any) -> Any:
        return -x

    with StandIns(handle) as stand_ins:
        stand_ins.cover(called_modules(net))
        net[0].forward = own  # type: ignore[method-assign]
        assert net(1) == -2
    assert handle.names == ["", "1"]
    assert vars(net[0])["forward"] is own
    assert "forward" not in vars(net[1])


def test_somebody_deleted_it_meanwhile() -> None:
    net = model()
    with StandIns(Handler()) as stand_ins:
        stand_ins.cover(called_modules(net))
        del net[0].forward
    assert net(1) == 4


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "deepcopy-of-a-part": lambda net: copy.deepcopy(net[0]),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_made_meanwhile_have_their_own_forward(name: str) -> None:
    net, handle = model(), Handler()
    net[0].register_buffer("held", torch.ones(2))
    with StandIns(handle) as stand_ins:
        stand_ins.cover(called_modules(net))
        made = COPIES[name](net)
        assert made(1) == (2 if name == "deepcopy-of-a-part" else 4)
        assert handle.names == []
        net(1)
    assert handle.names == ["", "0", "1"]
    for module in made.modules():
        assert module.forward.__self__ is module
        assert module.forward.__func__ is type(module).forward


def test_copies_of_nested_ones() -> None:
    net, outer, inner = model(), Handler(), Handler()
    with StandIns(outer) as one, StandIns(inner) as other:
        one.cover(called_modules(net))
        other.cover(called_modules(net))
        assert copy.deepcopy(net)(1) == pickle.loads(pickle.dumps(net))(1) == 4
    assert outer.names == inner.names == []


def test_what_is_behind() -> None:
    net = Doubles()
    assert StandIn.behind(vars(net).get("forward")) is None
    with StandIns(Handler()) as one, StandIns(Handler()) as other:
        one.cover({"": net})
        other.cover({"": net})
        assert StandIn.behind(vars(net)["forward"]) is None
    own = net.forward = lambda x: x  # type: ignore[method-assign]
    with StandIns(Handler()) as one:
        one.cover({"": net})
        assert StandIn.behind(vars(net)["forward"]) is own


def test_gradients_flow_through() -> None:
    net, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    with StandIns(Handler()) as stand_ins:
        stand_ins.cover({"": net})
        loss: Tensor = net(x).sum()
    loss.backward()
    assert x.grad is not None


def test_which_modules_are_called() -> None:
    shared = Doubles()
    net = nn.Module()
    net.parts = nn.ModuleList([shared, nn.Sequential(shared)])
    net.table = nn.ModuleDict({"a": nn.Identity()})
    assert list(called_modules(net)) == ["parts.0", "parts.1", "table.a"]
