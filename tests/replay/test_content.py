"""Digests of inputs, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from frostline.replay.content import (
    _hashed_on_device,
    chained,
    digest_of,
    kernel_settings,
    machine,
    sample_digests,
)

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=6)
DTYPES = st.sampled_from([torch.float32, torch.uint8, torch.int64, torch.bfloat16, torch.bool])


def on_device(tensor: Tensor) -> list[bytes]:
    """The sums that are taken on a GPU, taken here."""
    rows = tensor.contiguous().view(len(tensor), -1).view(torch.uint8)
    return [row.tobytes() for row in _hashed_on_device(rows).numpy()]


def by_sample(tensor: Tensor) -> list[bytes]:
    return sample_digests(tensor, len(tensor))


HASHES: dict[str, Callable[[Tensor], list[bytes]]] = {"cpu": by_sample, "device": on_device}


@pytest.mark.parametrize("where", HASHES)
def test_equal_rows_have_equal_digests_and_others_have_not(where: str) -> None:
    @given(rows=ROWS, dtype=DTYPES)
    def check(rows: list[list[int]], dtype: torch.dtype) -> None:
        tensor = torch.tensor(rows).to(dtype)
        digests = HASHES[where](tensor)
        for one, first in zip(tensor, digests, strict=True):
            for other, second in zip(tensor, digests, strict=True):
                assert torch.equal(one, other) == (first == second)

    check()


@pytest.mark.parametrize("where", HASHES)
def test_a_row_is_known_in_any_batch(where: str) -> None:
    @given(seed=st.integers(0, 99), order=st.permutations(range(5)))
    def check(seed: int, order: list[int]) -> None:
        tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
        digests = HASHES[where](tensor)
        assert HASHES[where](tensor[order]) == [digests[place] for place in order]
        assert HASHES[where](tensor[2:3]) == [digests[2]]

    check()


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "a-bit": lambda x: x.view(torch.int32).bitwise_xor(1).view(torch.float32),
    "the-sign": lambda x: -x,
    "the-sign-of-zero": lambda x: torch.where(x == 0, -x, x),
    "two-swapped": lambda x: x[:, [1, 0, *range(2, 9)]],
    "reversed": lambda x: x.flip(1),
    "the-last": lambda x: torch.cat([x[:, :-1], x[:, -1:] + 1], 1),
    "moved-by-one": lambda x: x.roll(1, 1),
    "one-up-one-down": lambda x: torch.cat([x[:, :1] + 1, x[:, 1:2] - 1, x[:, 2:]], 1),
    "nan": lambda x: torch.full_like(x, torch.nan),
}


@pytest.mark.parametrize("where", HASHES)
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_a_digest(name: str, where: str) -> None:
    tensor = torch.randn(4, 9)
    tensor[:, 3] = 0.0
    before, after = HASHES[where](tensor), HASHES[where](CHANGES[name](tensor))
    assert not set(before) & set(after)


@pytest.mark.parametrize("where", HASHES)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_bytes_that_fill_no_word(width: int, where: str) -> None:
    values = torch.arange(256, dtype=torch.uint8).repeat_interleave(width).view(256, width)
    assert len(set(HASHES[where](values))) == 256


@pytest.mark.parametrize("where", HASHES)
def test_one_bit_anywhere(where: str) -> None:
    rows = torch.zeros(1 + 40 * 8, 40, dtype=torch.uint8)
    for place in range(40):
        for bit in range(8):
            rows[1 + 8 * place + bit, place] = 1 << bit
    assert len(set(HASHES[where](rows))) == len(rows)


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_same() -> None:
    tensor = torch.randn(5, 7)[[0, 1, 0, 2, 1]]
    here, there = by_sample(tensor), by_sample(tensor.cuda())
    assert [here.index(d) for d in here] == [there.index(d) for d in there] == [0, 1, 0, 3, 1]
    head = len(there[0]) - 16
    assert [digest[head:] for digest in there] == on_device(tensor)


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "copy": (lambda x: x.clone(), True),
    "strides": (lambda x: x.t().contiguous().t(), True),
    "gradient": (lambda x: x.clone().requires_grad_(), True),
    "dtype": (lambda x: x.view(torch.int32), False),
    "shape": (lambda x: x.view(4, 2, 3), False),
    "dimension": (lambda x: x[:, None], False),
}


@pytest.mark.parametrize("name", FORMS)
def test_form(name: str) -> None:
    change, is_alike = FORMS[name]
    tensor = torch.randn(4, 6)
    assert (by_sample(change(tensor)) == by_sample(tensor)) is is_alike


def test_conjugates_are_what_they_look_like() -> None:
    tensor = torch.randn(3, 2, dtype=torch.complex64)
    assert by_sample(tensor.conj()) == by_sample(tensor.conj().resolve_conj())
    assert by_sample(tensor.conj()) != by_sample(tensor)


def test_several_rows_a_sample() -> None:
    tensor = torch.randn(6, 2)
    first, *_ = sample_digests(tensor, 3)
    tensor[1] += 1
    assert sample_digests(tensor, 3)[0] != first
    tensor[2] += 1
    assert len(set(sample_digests(tensor, 3))) == 3
    assert sample_digests(tensor, 3) != sample_digests(tensor.view(3, 4), 3)


WHOLE: dict[str, Tensor] = {
    "scalar": torch.tensor(3.0),
    "other-size": torch.randn(4, 2),
    "fewer": torch.randn(2, 2),
    "empty": torch.zeros(0, 2),
    "empty-rows": torch.zeros(3, 0),
    "sparse": torch.eye(3).to_sparse(),
    "nested": torch.nested.nested_tensor(
        [torch.ones(2), torch.ones(3), torch.ones(1)], layout=torch.jagged
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_belongs_to_every_sample_as_a_whole(name: str) -> None:
    digests = sample_digests(WHOLE[name], 3)
    assert len(digests) == 3
    assert len(set(digests)) == 1


def test_a_whole_tensor_counts_altogether() -> None:
    tensor = torch.randn(4, 2)
    before = sample_digests(tensor, 3)
    tensor[3, 1] += 1
    assert not set(before) & set(sample_digests(tensor, 3))


def test_only_read() -> None:
    tensor = torch.randn(4, 6)
    version = tensor._version
    by_sample(tensor)
    assert tensor._version == version


APART: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "where-one-ends": (("ab", "c"), ("a", "bc")),
    "how-many": (("a", ""), ("a",)),
    "order": (("a", "b"), ("b", "a")),
    "text-and-number": (("1",), (1,)),
    "bytes": ((b"ab", b"c"), (b"a", b"bc")),
    "nested": (([1, 2],), ([1], [2])),
}


@pytest.mark.parametrize("name", APART)
def test_digests_of_parts(name: str) -> None:
    one, other = APART[name]
    assert digest_of(*one) != digest_of(*other)
    assert digest_of(*one) == digest_of(*one)
    assert len(digest_of(*one)) == 16


def test_chained() -> None:
    before, column = [b"a" * 16, b"b" * 16], [b"c" * 16, b"d" * 16]
    one, other = chained(before, [column])
    assert one != other
    assert chained(before, [column[::-1]])[0] != one
    assert chained(before[::-1], [column[::-1]]) == [other, one]
    assert chained(before, [column, column])[0] != one
    with pytest.raises(ValueError, match="shorter"):
        chained(before, [column[:1]])


def test_what_changes_which_kernels_run() -> None:
    before = kernel_settings()
    assert kernel_settings() == before
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernel_settings() != before
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert kernel_settings() != before
    finally:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        assert kernel_settings() != before
    finally:
        torch.use_deterministic_algorithms(False)
    assert kernel_settings() == before


def test_the_machine() -> None:
    version, kind, processor, registers, _ = machine().split("|")
    assert version == torch.__version__
    assert kind
    assert processor
    assert registers == torch.backends.cpu.get_cpu_capability()
