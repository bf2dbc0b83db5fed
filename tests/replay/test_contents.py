"""What is seen of values and of what they hold, by identity."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from frostline.replay.contents import Contents


class Slotted:
    """An object without a ``__dict__``."""

    __slots__ = ("number",)

    def __init__(self, number: float) -> None:
        self.number = number


class Mixed(Slotted):
    """One with both."""


class Other(SimpleNamespace):
    """Another class."""


class Plain:
    """One whose ``__dict__`` can be replaced."""

    def __init__(self) -> None:
        self.k = 1


class Equal(SimpleNamespace):
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True


def move_to_the_end(value: dict[str, Any], key: str) -> None:
    value[key] = value.pop(key)


Make, Change = Callable[[], Any], Callable[[Any], Any]

SEEN: dict[str, tuple[Make, Change]] = {
    "dict": (lambda: {"a": 1}, lambda v: v.update(a=2)),
    "dict-renamed": (lambda: {"a": 1}, lambda v: v.update(b=v.pop("a"))),
    "dict-reordered": (lambda: {"a": 1, "b": 1}, lambda v: move_to_the_end(v, "a")),
    "dict-emptied-into-the-next": (
        lambda: [{"a": 1}, {}],
        lambda v: v[1].update(a=v[0].pop("a")),
    ),
    "dict-in-a-tuple": (lambda: ({"a": 1},), lambda v: v[0].update(a=2)),
    "dict-without-plain-keys": (lambda: {(1, 2): [1]}, lambda v: v[1, 2].append(2)),
    "ordered-dict": (lambda: OrderedDict(a=1, b=1), lambda v: v.move_to_end("a")),
    "list": (lambda: [1, 2], lambda v: v.reverse()),
    "list-shorter": (lambda: [1, 2], lambda v: v.pop()),
    "list-in-list": (lambda: [[1], [2]], lambda v: v[1].append(3)),
    "long-list": (lambda: [0] * 5000, lambda v: v.__setitem__(0, 1)),
    "set": (lambda: {1, 2}, lambda v: v.add(3)),
    "set-of-tuples": (lambda: {(1, 2)}, lambda v: v.add((3, 4))),
    "tensor-written": (lambda: torch.ones(3), lambda v: v.add_(1)),
    "tensor-replaced-by-an-equal-one": (
        lambda: [torch.ones(1)],
        lambda v: v.__setitem__(0, torch.ones(1)),
    ),
    "array-written": (lambda: np.ones(3), lambda v: v.__setitem__(0, 5.0)),
    "object": (lambda: SimpleNamespace(k=1), lambda v: setattr(v, "k", 2)),
    "object-that-was-empty": (SimpleNamespace, lambda v: setattr(v, "k", 2)),
    "object-in-object": (
        lambda: SimpleNamespace(a=SimpleNamespace(k=1)),
        lambda v: setattr(v.a, "k", 2),
    ),
    "object-of-another-class": (
        lambda: Other(k=1),
        lambda v: setattr(v, "__class__", Equal),
    ),
    "object-with-another-dict": (lambda: Other(k=1), lambda v: v.__dict__.update(k=2)),
    "object-replaced-by-an-equal-one": (lambda: [Equal()], lambda v: v.__setitem__(0, Equal())),
    "slots": (lambda: Slotted(1.0), lambda v: setattr(v, "number", 2.0)),
    "slots-beside-a-dict": (lambda: Mixed(1.0), lambda v: setattr(v, "number", 2.0)),
    "partial": (
        lambda: functools.partial(max, [1]),
        lambda v: v.args[0].append(2),
    ),
}
NOT_SEEN: dict[str, tuple[Make, Change]] = {
    "nothing": (lambda: [{"a": SimpleNamespace(k=[1, {2}])}, torch.ones(2)], lambda v: None),
    "itself": (lambda: (lambda held: held.append(held) or held)([]), lambda v: None),
    "module": (lambda: [torch.nn.Dropout()], lambda v: setattr(v[0], "p", 0.2)),
    "same-item": (lambda: {"a": 1}, lambda v: v.update(a=1)),
}


@pytest.mark.parametrize("name", SEEN)
def test_seen(name: str) -> None:
    make, change = SEEN[name]
    value = make()
    contents = Contents([value])
    assert contents.are_as_before()
    change(value)
    assert not contents.are_as_before()


@pytest.mark.parametrize("name", NOT_SEEN)
def test_not_seen(name: str) -> None:
    make, change = NOT_SEEN[name]
    value = make()
    contents = Contents([value])
    change(value)
    assert contents.are_as_before()


def test_a_dict_that_takes_the_place_of_an_objects_own() -> None:
    value = Plain()
    contents = Contents([value])
    value.__dict__ = {"k": 1}
    assert not contents.are_as_before()
