from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from frostline.nests import inner_tensors, tensors_in

ONE, TWO = torch.tensor(1.0), torch.tensor(2.0)


@dataclass
class Output:
    loss: Tensor
    layers: tuple[Tensor, ...]


@pytest.mark.parametrize(
    ("nest", "expected"),
    [
        pytest.param(ONE, [ONE], id="a-tensor"),
        pytest.param(OrderedDict(a=ONE, b={"c": TWO}), [ONE, TWO], id="mappings"),
        pytest.param([ONE, (TWO, "text", b"bytes", 3, None)], [ONE, TWO], id="lists"),
        pytest.param(deque([ONE]), [ONE], id="a-deque"),
        pytest.param({TWO}, [TWO], id="a-set"),
        pytest.param(Output(loss=ONE, layers=(TWO,)), [ONE, TWO], id="a-dataclass"),
        pytest.param(Output, [], id="a-class"),
    ],
)
def test_every_tensor_is_found(nest, expected):
    assert [id(tensor) for tensor in tensors_in(nest)] == [id(tensor) for tensor in expected]


def test_a_generator_is_left_for_its_owner():
    once = (tensor for tensor in [ONE, TWO])
    assert list(tensors_in([once])) == []
    assert list(once) == [ONE, TWO]


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
@pytest.mark.parametrize(
    ("make", "labels"),
    [
        pytest.param(lambda: torch.eye(2), [], id="dense"),
        pytest.param(lambda: torch.eye(2).to_sparse(), ["indices", "values"], id="coo"),
        pytest.param(lambda: torch.eye(2).to_sparse_csr(), ["crow", "col", "values"], id="csr"),
        pytest.param(lambda: torch.eye(2).to_sparse_csc(), ["ccol", "row", "values"], id="csc"),
    ],
)
def test_what_a_composite_tensor_is_made_of(make, labels):
    assert [label for label, _ in inner_tensors(make())] == labels
