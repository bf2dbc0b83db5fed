"""Tensors are cut into samples and come back bit for bit, laid out as they were."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from frostline.proof.traceless import same_bits
from frostline.replay.layout import Layout

SAMPLES = 4


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Every bit pattern may occur: NaN, -0.0 and denormals as well."""
    size = math.prod(shape) * dtype.itemsize
    top = 2 if dtype is torch.bool else 256
    return torch.randint(top, (size,), dtype=torch.uint8).view(dtype).view(shape)


FORMS: dict[str, tuple[Callable[[], Tensor], int | None]] = {
    "contiguous": (lambda: numbers(SAMPLES, 3, 5), 0),
    "channels-last": (
        lambda: numbers(SAMPLES, 3, 5, 6).to(memory_format=torch.channels_last),
        0,
    ),
    "permuted": (lambda: numbers(5, 3, SAMPLES).permute(2, 0, 1), 0),
    "batch-on-dimension-1": (lambda: numbers(7, SAMPLES, 3), 1),
    "batch-on-the-last-dimension": (lambda: numbers(7, 3, SAMPLES), 2),
    "expanded": (lambda: numbers(SAMPLES, 1, 3).expand(-1, 5, -1), 0),
    "expanded-over-samples": (lambda: numbers(1, 3).expand(SAMPLES, -1), 0),
    "expanded-altogether": (lambda: numbers(1).expand(SAMPLES, 2, 3), 0),
    "with-gaps": (lambda: numbers(SAMPLES, 10)[:, ::2], 0),
    "a-slice": (lambda: numbers(SAMPLES + 2, 10)[1:-1, 3:5], 0),
    "one-number-a-sample": (lambda: numbers(SAMPLES), 0),
    "windows": (lambda: numbers(SAMPLES * 3, 5), 0),
    "windows-on-dimension-1": (lambda: numbers(2, SAMPLES * 3), 1),
    "zero-size": (lambda: numbers(SAMPLES, 0, 3), 0),
    "bool": (lambda: numbers(SAMPLES, 3, dtype=torch.bool), 0),
    "complex": (lambda: numbers(SAMPLES, 3, dtype=torch.complex64), 0),
    "conjugate": (lambda: numbers(SAMPLES, 3, dtype=torch.complex64).conj(), 0),
    "negated": (lambda: numbers(SAMPLES, 3, dtype=torch.complex64).conj().imag, 0),
    "negated-contiguous": (lambda: torch._neg_view(numbers(SAMPLES, 3)), 0),
    "bfloat16": (lambda: numbers(SAMPLES, 3, dtype=torch.bfloat16), 0),
    "float16": (lambda: numbers(SAMPLES, 3, dtype=torch.float16), 0),
    "float8": (lambda: numbers(SAMPLES, 3, dtype=torch.float8_e4m3fn), 0),
    "int8": (lambda: numbers(SAMPLES, 3, dtype=torch.int8), 0),
    "int64": (lambda: numbers(SAMPLES, 3, dtype=torch.int64), 0),
    "needs-a-gradient": (lambda: numbers(SAMPLES, 3).requires_grad_(), 0),
    "not-of-samples": (lambda: numbers(3, 7), None),
    "a-scalar": (lambda: numbers(), None),
}


@pytest.mark.parametrize("name", FORMS)
def test_round_trip(name: str) -> None:
    make, batch_dim = FORMS[name]
    tensor = make()
    layout = Layout.of(tensor, samples=SAMPLES, varies=True)
    assert layout.batch_dim == batch_dim
    for way in (layout, *layout.candidates(), replace(layout, batch_dim=None)):
        records = way.to_records(tensor)
        rows = 1 if way.batch_dim is None else SAMPLES
        assert (records.dtype, tuple(records.shape)) == (torch.uint8, (rows, way.record_bytes))
        again = way.from_records(records)
        assert same_bits(again, tensor)
        assert (again.stride(), again.dtype) == (tensor.stride(), tensor.dtype)
        assert not again.requires_grad


def test_each_row_is_a_sample() -> None:
    """Rows may come from different batches, in another order."""
    ways = {
        "dimension-0": numbers(SAMPLES, 3),
        "dimension-1": numbers(5, SAMPLES, 3),
        "channels-last": numbers(SAMPLES, 3, 5, 6).to(memory_format=torch.channels_last),
    }
    order = torch.tensor([2, 0, 3, 1])
    for name, tensor in ways.items():
        layout = Layout.of(tensor, samples=SAMPLES, varies=True)
        moved = layout.from_records(layout.to_records(tensor)[order])
        assert layout.batch_dim is not None
        assert same_bits(moved, tensor.index_select(layout.batch_dim, order)), name


@pytest.mark.parametrize("inner_first", [False, True])
def test_heads_and_samples_on_one_dimension(inner_first: bool) -> None:
    heads, order = 3, torch.tensor([2, 0, 3, 1])
    apart = numbers(heads, SAMPLES, 5) if inner_first else numbers(SAMPLES, heads, 5)
    layout = Layout.of(apart.reshape(-1, 5), samples=SAMPLES, varies=True)
    assert [(way.batch_dim, way.inner_first) for way in layout.candidates()] == [
        (0, False),
        (0, True),
    ]
    way = layout.candidates()[inner_first]
    moved = way.from_records(way.to_records(apart.reshape(-1, 5))[order])
    expected = apart[:, order] if inner_first else apart[order]
    assert same_bits(moved, expected.reshape(-1, 5))
    other = layout.candidates()[not inner_first]
    wrong = other.from_records(other.to_records(apart.reshape(-1, 5))[order])
    assert not same_bits(wrong, expected.reshape(-1, 5))


WAYS: dict[str, tuple[tuple[int, ...], list[tuple[int, bool]]]] = {
    "one": ((4, 3), [(0, False)]),
    "two": ((4, 4), [(0, False), (1, False)]),
    "exact-before-multiples": ((8, 4), [(1, False), (0, False), (0, True)]),
    "none": ((3, 5), []),
    "scalar": ((), []),
    "multiple": ((3, 12), [(1, False), (1, True)]),
    "smaller": ((2,), []),
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_to_cut(name: str) -> None:
    shape, ways = WAYS[name]
    layout = Layout.of(torch.zeros(shape), samples=SAMPLES, varies=True)
    assert [(way.batch_dim, way.inner_first) for way in layout.candidates()] == ways


def test_what_does_not_depend_on_the_batch_is_not_cut() -> None:
    layout = Layout.of(torch.zeros(SAMPLES, 3), samples=SAMPLES, varies=False)
    assert layout.batch_dim is None
    assert layout.record_bytes == SAMPLES * 3 * 4


def test_one_sample() -> None:
    tensor = numbers(1, 3, 2).transpose(1, 2)
    layout = Layout.of(tensor, samples=1, varies=True)
    again = layout.from_records(layout.to_records(tensor))
    assert same_bits(again, tensor)
    assert again.stride() == tensor.stride()


@pytest.mark.parametrize("name", FORMS)
def test_placeholders(name: str) -> None:
    tensor = FORMS[name][0]()
    layout = Layout.of(tensor, samples=SAMPLES, varies=True)
    free, writable = (layout.placeholder(is_written=written) for written in (False, True))
    for made in (free, writable):
        assert (made.shape, made.dtype) == (tensor.shape, tensor.dtype)
        if made.dtype.is_floating_point or made.dtype.is_complex:
            assert bool(made.to(torch.complex64).isnan().all())
    assert free.untyped_storage().nbytes() == tensor.dtype.itemsize
    assert writable.stride() == tensor.stride()


DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64])


@given(data=st.data(), dtype=DTYPES, samples=st.integers(1, 5))
def test_any_form_comes_back(data: Any, dtype: torch.dtype, samples: int) -> None:
    sizes = data.draw(st.lists(st.integers(0, 4), max_size=3))
    shape = [*sizes, samples * data.draw(st.integers(1, 3))]
    shape = data.draw(st.permutations(shape))
    order = data.draw(st.permutations(range(len(shape))))
    tensor = numbers(*shape, dtype=dtype).permute(order)
    if data.draw(st.booleans()) and tensor.ndim:
        tensor = tensor[..., :: data.draw(st.integers(1, 2))]
    layout = Layout.of(tensor, samples=samples, varies=True)
    for way in (layout, *layout.candidates()):
        again = way.from_records(way.to_records(tensor))
        assert same_bits(again, tensor)
        assert again.stride() == tensor.stride()
        assert tuple(again.shape) == tuple(tensor.shape)
