"""Structures are taken apart and put together again."""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from frostline.replay.nest import can_be_rebuilt, open_nest, rebuild

ONE, TWO = torch.ones(2), torch.zeros(3)


class Named(NamedTuple):
    first: Any
    second: Any = None


@dataclass
class Data:
    first: Any
    second: Any = None


@dataclass(frozen=True)
class Frozen:
    first: Any


class Output(OrderedDict):
    """The base of ``transformers``' outputs: dataclass and mapping at once, a None is no key."""

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            if getattr(self, name) is not None:
                OrderedDict.__setitem__(self, name, getattr(self, name))

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("it can't be written to")


@dataclass
class LikeAModels(Output):
    first: Any = None
    second: Any = None


class Colour(enum.Enum):
    RED = 1


class ThreeOnly(tuple):
    """A tuple that can't be made from its items."""

    def __new__(cls, items: Any) -> Any:
        if len(items) != 3:
            raise ValueError
        return super().__new__(cls, (items[0],))


STRUCTURES = {
    "tensor": ONE,
    "tuple": (ONE, 3, (TWO, "a")),
    "list": [ONE, [TWO], None],
    "dict": {"b": TWO, "a": [ONE]},
    "named-tuple": Named(ONE, Named(TWO)),
    "dataclass": Data(ONE, [TWO]),
    "frozen-dataclass": Frozen({"a": ONE}),
    "ordered": OrderedDict(b=ONE, a=TWO),
    "default-dict": defaultdict(list, a=ONE),
    "model-output": LikeAModels(first=ONE, second=(TWO,)),
    "model-output-with-none": LikeAModels(first=ONE),
    "twice": (ONE, ONE),
    "constants": (True, 1, 1.5, 2j, "a", b"a", range(3), slice(1, 2), Colour.RED, torch.float32),
    "size": torch.Size([2, 3]),
    "empty": ((), [], {}),
    "parameter": nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_round_trip(name: str) -> None:
    value = STRUCTURES[name]
    nest = open_nest(value)
    new = [torch.full((1,), float(number)) for number in range(len(nest.tensors))]
    again = rebuild(value, new)
    opened = open_nest(again)
    assert type(again) is type(value) or isinstance(value, Tensor)
    assert opened.form == nest.form
    assert [id(tensor) for tensor in opened.tensors] == [id(tensor) for tensor in new]
    assert nest.opaque == opened.opaque == []
    # What was taken apart is as it was.
    assert [id(t) for t in open_nest(value).tensors] == [id(t) for t in nest.tensors]
    assert can_be_rebuilt(value)


def test_order_of_tensors() -> None:
    assert [t is ONE for t in open_nest({"b": ONE, "a": (TWO, [ONE])}).tensors] == [
        True,
        False,
        True,
    ]


def test_a_model_output_can_be_read_both_ways() -> None:
    new = rebuild(LikeAModels(first=ONE, second=None), [TWO])
    assert new.first is TWO
    assert dict(new) == {"first": TWO}
    assert new.second is None
    assert list(new.keys()) == ["first"]


def test_a_default_dict_keeps_its_factory() -> None:
    assert rebuild(defaultdict(list, a=ONE), [TWO])["missing"] == []


SAME_FORM = {
    "other-content": (torch.ones(2), torch.zeros(2)),
    "other-shape": (torch.ones(2), torch.zeros(5, 3)),
    "equal-constants": ([1, "a"], [1, "a"]),
}
OTHER_FORM = {
    "constant": ((ONE, 1), (ONE, 2)),
    "bool-and-int": ((ONE, True), (ONE, 1)),
    "int-and-float": ((ONE, 1), (ONE, 1.0)),
    "key": ({"a": ONE}, {"b": ONE}),
    "key-of-another-type": ({1: ONE}, {"1": ONE}),
    "order-of-keys": ({"a": ONE, "b": TWO}, {"b": ONE, "a": TWO}),
    "container": ((ONE,), [ONE]),
    "nesting": ((ONE, (TWO,)), ((ONE,), TWO)),
    "none-and-tensor": ((ONE, None), (ONE, TWO)),
    "object": ((ONE, nn.ReLU()), (ONE, nn.Tanh())),
    "dtype": ((ONE, torch.int8), (ONE, torch.int16)),
}


@pytest.mark.parametrize("name", SAME_FORM)
def test_same_form(name: str) -> None:
    one, other = (open_nest(value).form for value in SAME_FORM[name])
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize("name", OTHER_FORM)
def test_other_form(name: str) -> None:
    one, other = (open_nest(value).form for value in OTHER_FORM[name])
    assert one != other


def test_opaque_objects() -> None:
    held = SimpleNamespace(x=ONE, inner=SimpleNamespace(y=TWO))
    plain = open_nest((held, TWO))
    assert [id(tensor) for tensor in plain.tensors] == [id(TWO)]
    assert plain.opaque == [held]
    inside = open_nest((held, TWO), into_objects=True)
    assert [id(tensor) for tensor in inside.tensors] == [id(ONE), id(TWO), id(TWO)]
    assert not can_be_rebuilt((held, TWO))


def test_what_takes_the_place_of_objects() -> None:
    held = SimpleNamespace(x=ONE)
    assert rebuild((held, ONE), [TWO])[0] is held
    assert rebuild((held, ONE), [TWO], objects=lambda held: type(held).__name__) == (
        "SimpleNamespace",
        TWO,
    )


def test_objects_that_hold_each_other() -> None:
    one, other = SimpleNamespace(x=ONE), SimpleNamespace(x=TWO)
    one.other, other.other = other, one
    assert len(open_nest(one, into_objects=True).tensors) == 2


NOT_ENTERED = {
    "module": nn.Linear(2, 2),
    "function": lambda: ONE,
    "class": Data,
    "generator": torch.Generator(),
}


@pytest.mark.parametrize("name", NOT_ENTERED)
def test_what_is_never_looked_into(name: str) -> None:
    nest = open_nest((NOT_ENTERED[name], ONE), into_objects=True)
    assert [id(tensor) for tensor in nest.tensors] == [id(ONE)]
    assert nest.opaque == [NOT_ENTERED[name]]


CANNOT = {
    "class-with-a-will": ThreeOnly([ONE, 1, 2]),
    "object": SimpleNamespace(x=ONE),
    "object-inside": [ONE, {"a": SimpleNamespace()}],
    "set": {1, 2},
    "function": lambda: ONE,
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_made_anew(name: str) -> None:
    assert not can_be_rebuilt(CANNOT[name])


LEAVES = st.one_of(st.just("tensor"), st.integers(), st.none(), st.text(max_size=2))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.builds(Data, inner, inner),
        st.builds(Named, inner, inner),
    ),
    max_leaves=8,
)


def planted(tree: Any) -> Any:
    """The tree with a new tensor in the place of each mark."""
    if tree == "tensor":
        return torch.ones(1)
    if isinstance(tree, Data):
        return Data(planted(tree.first), planted(tree.second))
    if isinstance(tree, Named):
        return Named(planted(tree.first), planted(tree.second))
    if isinstance(tree, dict):
        return {key: planted(held) for key, held in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(planted(held) for held in tree)
    return tree


@given(tree=TREES)
def test_any_structure_comes_back(tree: Any) -> None:
    value = planted(tree)
    nest = open_nest(value)
    new = [torch.zeros(1) for _ in nest.tensors]
    again = open_nest(rebuild(value, new))
    assert again.form == nest.form
    assert [id(tensor) for tensor in again.tensors] == [id(tensor) for tensor in new]
    assert can_be_rebuilt(value)
