"""Marks of nested values: what they see, and what they don't."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from frostline.replay.deep import deep_mark, lasting_mark


def _double(x: Any) -> Any:
    return 2 * x


def _triple(x: Any) -> Any:
    return 3 * x


def times(number: float) -> Callable[[Any], Any]:
    return lambda x: x * number


class Times:
    def __init__(self, number: float) -> None:
        self.number = number

    def __call__(self, x: Any) -> Any:
        return x * self.number


class Slotted:
    __slots__ = ("number",)

    def __init__(self, number: float) -> None:
        self.number = number


def changed(value: Any, change: Callable[[Any], Any]) -> bool:
    before = deep_mark(value)
    assert before == deep_mark(value)
    change(value)
    return bool(before != deep_mark(value))


def put(*path: Any, to: Any = 9) -> Callable[[Any], None]:
    """Sets what lies at the end of a path of keys and attributes."""

    def change(value: Any) -> None:
        for key in path[:-1]:
            value = getattr(value, key) if isinstance(value, SimpleNamespace) else value[key]
        if isinstance(value, SimpleNamespace):
            setattr(value, path[-1], to)
        else:
            value[path[-1]] = to

    return change


SEEN: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "item": (lambda: [1, 2], put(1)),
    "appended": (lambda: [1, 2], lambda v: v.append(3)),
    "same-length": (lambda: {"a": 1}, lambda v: (v.pop("a"), v.update(b=1))),
    "order-of-a-list": (lambda: [1, 2], lambda v: v.reverse()),
    "dict-in-dict": (lambda: {"a": {"k": 1}}, put("a", "k")),
    "list-in-list": (lambda: [[1], [2]], put(0, 0)),
    "namespace": (lambda: SimpleNamespace(k=1), put("k")),
    "namespace-in-namespace": (lambda: SimpleNamespace(a=SimpleNamespace(k=1)), put("a", "k")),
    "three-deep": (lambda: {"a": [SimpleNamespace(k=1)]}, put("a", 0, "k")),
    "in-a-tuple": (lambda: (1, [2]), put(1, 0)),
    "set": (lambda: {1, 2}, lambda v: v.add(3)),
    "five-deep": (lambda: [[[[[1]]]]], put(0, 0, 0, 0, 0)),
    "beyond-64": (lambda: [1] * 100, put(80)),
    "appended-beyond-64": (lambda: [1] * 100, lambda v: v.append(1)),
    "callable-object": (lambda: [Times(2)], lambda v: setattr(v[0], "number", 3)),
    "object-with-slots": (lambda: [Slotted(2)], lambda v: setattr(v[0], "number", 3)),
    "object-for-int": (lambda: [SimpleNamespace(), 1], put(0, to=1)),
    "array": (lambda: np.zeros(3), put(1)),
    "array-inside": (lambda: {"a": np.zeros(3)}, put("a", 1)),
    "array-with-strides": (lambda: np.zeros((3, 4))[:, ::2], put((1, 1))),
    "tensor": (lambda: torch.zeros(3), lambda v: v.add_(1)),
    "tensor-inside": (lambda: {"a": torch.zeros(3)}, lambda v: v["a"].add_(1)),
    "other-tensor": (lambda: [torch.zeros(3)], put(0, to=torch.zeros(3))),
    "function": (lambda: [_double], put(0, to=_triple)),
    "module": (lambda: [nn.ReLU()], put(0, to=nn.ReLU())),
    "class": (lambda: [int], put(0, to=float)),
}
NOT_SEEN: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "nothing": (lambda: {"a": [1]}, lambda v: None),
    "equal-value": (lambda: {"a": [1]}, put("a", to=[1])),
    "gradient": (lambda: [torch.zeros(3)], lambda v: setattr(v[0], "grad", torch.ones(3))),
    "inside-a-module": (lambda: [nn.Dropout(0.1)], lambda v: setattr(v[0], "p", 0.2)),
}


@pytest.mark.parametrize("name", SEEN)
def test_seen(name: str) -> None:
    make, change = SEEN[name]
    assert changed(make(), change)


@pytest.mark.parametrize("name", NOT_SEEN)
def test_not_seen(name: str) -> None:
    make, change = NOT_SEEN[name]
    assert not changed(make(), change)


def test_what_holds_itself() -> None:
    held: list[Any] = [1]
    held.append(held)
    assert changed(held, put(0))


APART: dict[str, tuple[Any, Any]] = {
    "number": ([1], [2]),
    "type-of-number": ([1], [1.0]),
    "bool-and-int": ([True], [1]),
    "nested": ({"a": [1]}, {"a": [2]}),
    "key": ({"a": 1}, {"b": 1}),
    "tensor": (torch.zeros(2), torch.ones(2)),
    "array": (np.zeros(2), np.ones(2)),
    "shape-of-an-array": (np.zeros((2, 3)), np.zeros((3, 2))),
    "dtype-of-an-array": (np.zeros(2, np.int32), np.zeros(2, np.float32)),
    "function": (_double, _triple),
    "closure": (times(2), times(3)),
    "namespace": (SimpleNamespace(k=1), SimpleNamespace(k=2)),
    "class-of-an-object": (nn.ReLU(), nn.Tanh()),
    "container": ([1], (1,)),
    "partial": (functools.partial(_double, 1), functools.partial(_double, 2)),
    "callable-object": (Times(2), Times(3)),
    "object-with-slots": (Slotted(2), Slotted(3)),
    "default": (lambda x, k=2: x * k, lambda x, k=3: x * k),
    "constant-in-a-function": (lambda x: x * 2, lambda x: x * 3),
    "global-in-a-function": (lambda x: np.sin(x), lambda x: np.cos(x)),
}
ALIKE: dict[str, tuple[Any, Any]] = {
    "tensor": (torch.zeros(2), torch.zeros(2)),
    "array": (np.zeros(2), np.zeros(2)),
    "closure": (times(2), times(2)),
    "set": ({1, 2, "a"}, {"a", 2, 1}),
    "namespace": (SimpleNamespace(k=[1]), SimpleNamespace(k=[1])),
    "labels-of-the-head": ({"k": 1, "id2label": {0: "a"}}, {"k": 1, "id2label": {0: "b"}}),
}


@pytest.mark.parametrize("name", APART)
def test_lasting_marks_apart(name: str) -> None:
    one, other = APART[name]
    assert lasting_mark(one) != lasting_mark(other)


@pytest.mark.parametrize("name", ALIKE)
def test_lasting_marks_alike(name: str) -> None:
    one, other = ALIKE[name]
    assert lasting_mark(one) == lasting_mark(other)


LASTING = (
    "from types import SimpleNamespace; import numpy, torch;"
    "from frostline.replay.deep import lasting_mark;"
    "held = {'a': {'x', 'y', 'zz'}, 'b': SimpleNamespace(k=[object()]), 'c': torch.relu,"
    " 'd': numpy.ones(2), 'e': lambda x: x * 2, 'f': torch.ones(2)};"
    "import sys; sys.stdout.write(repr(lasting_mark(held)))"
)


def test_lasting_marks_are_the_same_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", LASTING],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert "0x" not in outputs.pop()
