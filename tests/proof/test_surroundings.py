"""What modules hold and their code reaches is found, and put back."""

from __future__ import annotations

import functools
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from frostline.proof.surroundings import Surroundings, generator_state

count = 0
table: dict[str, int] = {}
text = "a"
unmentioned: list[int] = []


class Own:
    """A configuration of somebody's own."""

    def __init__(self) -> None:
        self.k = 1
        self.items = [1]

    def note(self, *_: Any) -> None:
        self.k += 1

    def __call__(self, *_: Any) -> None:
        self.items.append(2)


class OwnList(list):
    """It may do what it likes when it is copied."""


@pytest.fixture(autouse=True)
def _globals() -> Iterator[None]:
    yield
    globals().update(count=0, text="a")
    table.clear()
    unmentioned.clear()


def holding(value: Any) -> nn.Module:
    module = nn.Identity()
    module.held = value
    return module


CONTAINERS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "appended": ([1, 2], lambda v: v.append(3)),
    "replaced-item": ([1, 2], lambda v: v.__setitem__(0, 5)),
    "emptied": ([1, 2], lambda v: v.clear()),
    "order": ([1, 2], lambda v: v.reverse()),
    "dict": ({"a": 1}, lambda v: v.update(a=2)),
    "dict-key": ({"a": 1}, lambda v: (v.pop("a"), v.update(b=1))),
    "set": ({1}, lambda v: v.add(2)),
    "deque": (deque([1, 2], maxlen=2), lambda v: v.append(3)),
    "ordered": (OrderedDict(a=1, b=2), lambda v: v.move_to_end("a")),
    "default": (defaultdict(int, a=1), lambda v: v["b"]),
    "counter": (Counter("aab"), lambda v: v.update("c")),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name: str) -> None:
    value, change = CONTAINERS[name]
    module, before = holding(value), value.copy()
    kept = Surroundings([module])
    change(value)
    assert list(value) != list(before) or value != before
    kept.restore()
    assert module.held is value
    assert value == before
    assert list(value) == list(before)
    assert type(value) is type(before)


def test_containers_that_did_not_change_are_left_alone() -> None:
    held = {"a": [1]}
    kept = Surroundings([holding(held)])
    iterator = iter(held)
    kept.restore()
    assert list(iterator) == ["a"]  # a dict that is filled anew raises here


def test_attributes_of_objects_one_level_deep() -> None:
    own = Own()
    kept = Surroundings([holding(own)])
    own.k, own.late = 5, 1
    own.items.append(7)
    kept.restore()
    assert vars(own) == {"k": 1, "items": [1]}


def test_what_is_not_held() -> None:
    own = OwnList([1])
    inner = nn.Dropout(0.1)
    deep = SimpleNamespace(inner=Own())
    kept = Surroundings([holding(own), holding([inner]), holding(deep)])
    own.append(2)
    inner.p = 0.5
    deep.inner.items.append(2)
    kept.restore()
    assert (own, inner.p, deep.inner.items) == ([1, 2], 0.5, [1, 2])


def counting() -> tuple[nn.Module, Callable[[], tuple[int, list[int]]]]:
    """A module whose forward counts in a closure."""
    number, noted = 0, list[int]()

    class Counts(nn.Module):
        def forward(self, x: Any) -> Any:
            nonlocal number
            number += 1
            noted.append(number)
            return x

    return Counts(), lambda: (number, noted)


def test_closures() -> None:
    module, state = counting()
    kept = Surroundings([module])
    module(1)
    module(1)
    assert state() == (2, [1, 2])
    kept.restore()
    assert state() == (0, [])


class InGlobals(nn.Module):
    def forward(self, x: Any) -> Any:
        global count
        count += 1
        table["x"] = count
        return [text for _ in range(1)]


def test_global_names() -> None:
    module = InGlobals()
    kept = Surroundings([module])
    module(1)
    unmentioned.append(1)
    assert (count, table) == (1, {"x": 1})
    kept.restore()
    assert (count, table, unmentioned) == (0, {}, [1])


def decorated(function: Any) -> Any:
    calls: list[int] = []

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    wrapper.calls = calls
    return wrapper


class Decorated(nn.Module):
    @decorated
    def forward(self, x: Any) -> Any:
        global count
        count += 1
        return x


def test_what_a_decorator_wraps() -> None:
    module = Decorated()
    kept = Surroundings([module])
    module(1)
    assert (count, Decorated.forward.calls) == (1, [1])
    kept.restore()
    assert (count, Decorated.forward.calls) == (0, [])


def _note(noted: list[int], module: Any, *_: Any, option: Any = None) -> None:
    noted.append(1)
    if option is not None:
        option["calls"] = 1


def test_hooks() -> None:
    module, own, called = nn.Identity(), Own(), Own()
    noted, option, plain = list[int](), dict[str, int](), list[int]()
    module.register_forward_hook(functools.partial(_note, noted, option=option))
    module.register_forward_hook(own.note)
    module.register_forward_hook(called)
    module.register_forward_pre_hook(lambda *_: plain.append(1))
    kept = Surroundings([module])
    module(1)
    state = noted, option, own.k, called.items, plain
    assert state == ([1], {"calls": 1}, 2, [1, 2], [1])
    kept.restore()
    state = noted, option, own.k, called.items, plain
    assert state == ([], {}, 1, [1], [])


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "python": (lambda: random.Random(0), lambda g: g.random()),
    "numpy": (lambda: np.random.default_rng(0), lambda g: g.random()),
    "numpy-of-old": (lambda: np.random.RandomState(0), lambda g: g.rand()),
    "torch": (
        lambda: torch.Generator().manual_seed(0),
        lambda g: torch.rand(1, generator=g).item(),
    ),
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("place", ["attribute", "closure"])
def test_generators(name: str, place: str) -> None:
    make, draw = GENERATORS[name]
    generator = make()

    class Holds(nn.Module):
        def forward(self, x: Any) -> Any:
            return draw(self.held)

    class Reaches(nn.Module):
        def forward(self, x: Any) -> Any:
            return draw(generator)

    module = Holds() if place == "attribute" else Reaches()
    if place == "attribute":
        module.held = generator
    kept = Surroundings([module])
    assert [id(one) for one in kept.generators] == [id(generator)]
    first = module(1)
    assert module(1) != first
    kept.restore()
    assert module(1) == first


def test_the_state_of_a_numpy_generator_is_a_copy() -> None:
    generator = np.random.default_rng(0)
    state = generator_state(generator)
    generator.random()
    assert state != generator_state(generator)


def test_plain_values() -> None:
    module = InGlobals()
    kept = Surroundings([module])
    assert sorted(kept.plain_values()) == [("count", 0), ("text", "a")]
    module(1)
    globals()["text"] = "b"
    assert sorted(kept.plain_values()) == [("count", 1), ("text", "b")]


def test_plain_values_of_closures() -> None:
    module, _ = counting()
    kept = Surroundings([module])
    module(1)
    assert kept.plain_values() == [("a closure's value", 1)]


def test_a_closure_that_is_not_filled_yet() -> None:
    class Late(nn.Module):
        def forward(self, x: Any) -> Any:
            return value

    kept = Surroundings([Late()])
    assert kept.plain_values() == []
    value = 1
    kept.restore()
    assert Late()(0) == 1


def test_modules_of_libraries_are_not_looked_into() -> None:
    kept = Surroundings([nn.Linear(2, 2), nn.MultiheadAttention(4, 2), nn.LSTM(2, 2)])
    assert kept.plain_values() == []
    assert kept.generators == []
