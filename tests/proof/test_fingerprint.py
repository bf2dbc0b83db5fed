from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from frostline.proof import fingerprint
from frostline.proof import fingerprint as fingerprint_of


def sparse(values):
    return torch.sparse_coo_tensor([[0, 2]], values, (4,), check_invariants=True, is_coalesced=True)


SAME = [
    pytest.param(torch.ones(2, 3), torch.ones(2, 3), id="equal"),
    pytest.param(
        torch.arange(6.0).view(2, 3), torch.arange(6.0).view(3, 2).T.T.reshape(2, 3), id="view"
    ),
    pytest.param(torch.eye(3)[:, :2], torch.eye(3)[:, :2].contiguous(), id="strided"),
    pytest.param(
        torch.arange(48.0).view(1, 3, 4, 4),
        torch.arange(48.0).view(1, 3, 4, 4).to(memory_format=torch.channels_last),
        id="channels-last",
    ),
    pytest.param(torch.ones(1).expand(5), torch.ones(5), id="expanded"),
    pytest.param(torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j]), id="conjugate-view"),
    pytest.param(torch.tensor(math.nan), torch.tensor(math.nan), id="nan"),
    pytest.param(sparse([1.0, 2.0]), sparse([1.0, 2.0]), id="sparse"),
    pytest.param(torch.empty(3, device="meta"), torch.empty(3, device="meta"), id="meta"),
    pytest.param(torch.empty(0, 3), torch.empty(0, 3), id="empty"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_same_content_same_fingerprint(one, other):
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0]), id="order"),
        # torch.hash_tensor is an XOR, for which these two are the same.
        pytest.param(torch.tensor([1, 2, 3, 3]), torch.tensor([2, 1, 5, 5]), id="xor-collision"),
        pytest.param(torch.zeros(2, 3), torch.zeros(3, 2), id="shape"),
        pytest.param(torch.zeros(4), torch.zeros(4, dtype=torch.int32), id="dtype"),
        pytest.param(torch.zeros(2).bfloat16(), torch.zeros(2).half(), id="bf16-is-not-fp16"),
        pytest.param(torch.tensor(0.0), torch.tensor(-0.0), id="minus-zero"),
        pytest.param(torch.empty(0, 3), torch.empty(3, 0), id="empty-shapes"),
        pytest.param(torch.empty(0), torch.empty(0, device="meta").int(), id="empty-dtype"),
        pytest.param(sparse([1.0, 2.0]), sparse([1.0, 3.0]), id="sparse-values"),
        pytest.param(torch.tensor([1j]), torch.tensor([-1j]), id="complex"),
    ],
)
def test_other_content_other_fingerprint(one, other):
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.float8_e4m3fn,
        torch.int8,
        torch.uint8,
        torch.int64,
        torch.bool,
        torch.complex64,
    ],
    ids=str,
)
def test_one_flipped_bit_is_seen_in_every_dtype(dtype):
    tensor = torch.zeros(5, 7).to(dtype)
    before = fingerprint(tensor)
    # The raw byte is changed, so that not even the version counter moves.
    tensor.view(-1).view(torch.uint8).numpy()[-1] ^= 1
    assert fingerprint(tensor) != before


def test_a_change_in_any_piece_of_a_large_strided_tensor_is_seen(monkeypatch):
    monkeypatch.setattr(sys.modules["frostline.proof.fingerprint"], "_PIECE_BYTES", 64)
    tensor = torch.zeros(9, 11, 2).transpose(0, 1)
    seen = {fingerprint(tensor)}
    for place in ((0, 0, 0), (5, 3, 1), (10, 8, 1)):
        tensor[place] += 1
        seen.add(fingerprint(tensor))
    assert len(seen) == 4
    assert fingerprint(tensor) == fingerprint(tensor.contiguous())


@given(st.integers(0, 3), st.integers(1, 4), st.integers(1, 5))
def test_strides_and_offsets_do_not_matter(offset, rows, columns):
    base = torch.randn(rows + offset, columns + 2)
    view = base[offset:, 1:-1]
    assert fingerprint_of(view) == fingerprint_of(view.clone(memory_format=torch.contiguous_format))


def test_reads_only():
    parameter = nn.Parameter(torch.ones(3))
    version = parameter._version
    fingerprint(parameter)
    assert (parameter._version, parameter.requires_grad, parameter.grad) == (version, True, None)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_parameter():
    assert len(fingerprint(nn.LazyLinear(2).weight)) == 32


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_compressed_sparse_indices_count():
    one, other = torch.eye(2).to_sparse_csr(), torch.eye(2).flip(0).to_sparse_csr()
    assert torch.equal(one.values(), other.values())
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_the_scale_of_a_quantised_tensor_counts():
    one, other = (
        torch.quantize_per_tensor(torch.tensor([1.0, 2.0]) * scale, scale, 0, torch.qint8)
        for scale in (1.0, 2.0)
    )
    assert torch.equal(one.int_repr(), other.int_repr())
    assert fingerprint(one) != fingerprint(other)
