from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from frostline.errors import ReplayError
from frostline.replay.fields import can_be_poisoned, leaves, poison, rebuild, same_value

ONE, TWO = torch.tensor([1.0]), torch.tensor([2.0])
Pair = namedtuple("Pair", ["image", "label"])


@dataclass(frozen=True)
class Example:
    image: Tensor
    area: Any = field(init=False, default=None)
    missing: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "area", self.image.sum())


@dataclass
class Slotted:
    __slots__ = ("image",)
    image: Tensor


class Encoding(UserDict):
    """As transformers' BatchEncoding: items in ``data``, and state beside them."""

    def __init__(self, data: dict[str, Any], encodings: Any) -> None:
        super().__init__(data)
        self._encodings = encodings


@dataclass
class Output(OrderedDict):
    """As transformers' ModelOutput: a dict and a dataclass; None is no item."""

    loss: Any = None
    logits: Any = None

    def __post_init__(self) -> None:
        for name in ("loss", "logits"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        super().__setattr__(name, value)


class Fussy(tuple):
    def __new__(cls, items: Any, more: Any) -> Fussy:
        return super().__new__(cls, items)


BATCHES = [
    pytest.param(ONE, {"": ONE}, id="lone"),
    pytest.param({"x": ONE, 1: [TWO, 3]}, {"x": ONE, "1.0": TWO, "1.1": 3}, id="nested"),
    pytest.param((ONE, [], {}, None), {"0": ONE, "3": None}, id="empty-containers"),
    pytest.param(Pair(ONE, 7), {"0": ONE, "1": 7}, id="namedtuple"),
    pytest.param([Pair(ONE, "text")], {"0.0": ONE, "0.1": "text"}, id="in-a-list"),
    pytest.param(Example(TWO), {"image": TWO, "area": TWO.sum()}, id="frozen-dataclass"),
    pytest.param(Slotted(ONE), {"image": ONE}, id="slots"),
    pytest.param(Encoding({"ids": ONE}, "beside"), {"ids": ONE}, id="batch-encoding"),
    pytest.param(Output(logits=ONE), {"logits": ONE}, id="model-output"),
    pytest.param(OrderedDict(b=ONE, a=TWO), {"b": ONE, "a": TWO}, id="ordered"),
    pytest.param(MappingProxyType({"a": ONE}), {"a": ONE}, id="read-only-mapping"),
    pytest.param({"a": numpy.ones(2)}, {"a": numpy.ones(2)}, id="array"),
    pytest.param({"a": {1, 2}}, {"a": {1, 2}}, id="a-set-is-a-leaf"),
]


def test_the_leaves_are_named_by_their_paths():
    for case in BATCHES:
        batch, expected = case.values
        found = leaves(batch)
        assert list(found) == list(expected), case.id
        for path, leaf in expected.items():
            same = same_value(found[path], leaf) or found[path] == leaf
            assert same, (case.id, path)


@pytest.mark.parametrize(
    "batch", [pytest.param(case.values[0], id=case.id) for case in BATCHES if case.id != "lone"]
)
def test_rebuilt_with_other_leaves_in_the_same_containers(batch):
    before = leaves(batch)
    names = rebuild(batch, lambda path, leaf: f"<{path}>")
    assert type(names) is type(batch)
    assert leaves(names) == {path: f"<{path}>" for path in before}
    again = rebuild(names, lambda path, _: before[path])
    assert {path: id(leaf) for path, leaf in leaves(again).items()} == {
        path: id(leaf) for path, leaf in before.items()
    }
    assert leaves(batch) == before or [*leaves(batch).values()] == [*before.values()]


def test_what_containers_hold_beside_is_kept():
    assert rebuild(Encoding({"ids": ONE}, "beside"), lambda _, leaf: leaf)._encodings == "beside"
    filled = rebuild(Output(logits=ONE), lambda *_: TWO)
    assert (filled.logits is TWO, filled["logits"] is TWO, filled.loss) == (True, True, None)
    made = rebuild(defaultdict(list, a=1), lambda _, leaf: leaf)
    assert made["b"] == []


def test_containers_can_count_as_leaves():
    assert rebuild({"a": [1, 2], "b": [3]}, lambda path, _: path, whole={"a"}) == {
        "a": "a",
        "b": ["b.0"],
    }


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        pytest.param({1: ONE, "1": TWO}, "both named '1'", id="number-and-text"),
        pytest.param({"a.b": ONE, "a": {"b": TWO}}, "both named 'a.b'", id="a-dot"),
    ],
)
def test_two_leaves_of_one_path_are_refused(batch, reason):
    with pytest.raises(ReplayError, match=reason):
        leaves(batch)


def test_a_container_that_cannot_be_made_anew_is_refused():
    with pytest.raises(ReplayError, match="holds a Fussy"):
        rebuild({"a": Fussy([ONE], 3)}, lambda _, leaf: leaf)


NAN = float("nan")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param(torch.tensor([NAN]), torch.tensor([NAN]), True, id="nan-tensors"),
        pytest.param(torch.zeros(1), -torch.zeros(1), False, id="signed-zero-tensors"),
        pytest.param(torch.zeros(1), torch.zeros(1).half(), False, id="dtypes"),
        pytest.param(torch.zeros(2, 1), torch.zeros(1, 2), False, id="shapes"),
        pytest.param(torch.eye(2).t(), torch.eye(2), True, id="strides"),
        pytest.param(torch.zeros(1), torch.zeros(1, device="meta"), False, id="devices"),
        pytest.param(torch.eye(2).to_sparse(), torch.eye(2).to_sparse(), True, id="sparse"),
        pytest.param(numpy.ones(2), numpy.ones(2), True, id="arrays"),
        pytest.param(numpy.ones(2), numpy.ones(2, "f4"), False, id="array-dtypes"),
        pytest.param(numpy.float32(1), numpy.float32(1), True, id="numpy-scalars"),
        pytest.param(numpy.ones(2), torch.ones(2), False, id="array-and-tensor"),
        pytest.param(NAN, float("nan"), True, id="nan"),
        pytest.param(0.0, -0.0, False, id="signed-zero"),
        pytest.param(1, 1.0, False, id="whole-and-float"),
        pytest.param("a", "a" * 1, True, id="text"),
        pytest.param({1}, {1}, False, id="opaque-objects"),
    ],
)
def test_bitwise_the_same(one, other, expected):
    assert same_value(one, other) is expected


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float32, NAN),
        (torch.bfloat16, NAN),
        (torch.float8_e4m3fn, NAN),
        (torch.complex64, NAN),
        (torch.int64, -(2**63)),
        (torch.int8, -128),
        (torch.uint8, 0),
        (torch.bool, 0),
    ],
    ids=str,
)
def test_poison(dtype, value):
    made = poison((3, 1000), dtype)
    assert (made.shape, made.dtype, made.stride()) == ((3, 1000), dtype, (0, 0))
    assert made.untyped_storage().nbytes() == dtype.itemsize
    assert same_value(complex(made[2, 5].item()).real, float(value))
    assert can_be_poisoned(dtype) == (value != 0)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda bad: torch.nn.functional.embedding(bad, torch.eye(3)), id="embedding"),
        pytest.param(lambda bad: torch.nn.functional.cross_entropy(torch.eye(3), bad), id="loss"),
        pytest.param(lambda bad: torch.eye(3)[bad], id="index"),
        pytest.param(lambda bad: bad.add_(1), id="write"),
    ],
)
def test_poisoned_integers_fail_where_they_are_used(use):
    with pytest.raises((RuntimeError, IndexError)):
        use(poison((3,), torch.int64))


@pytest.mark.parametrize(
    ("dtype", "expected"), [("f4", True), ("c8", True), ("i4", True), ("u1", False), ("?", False)]
)
def test_which_arrays_can_be_poisoned(dtype, expected):
    assert can_be_poisoned(numpy.dtype(dtype)) is expected
