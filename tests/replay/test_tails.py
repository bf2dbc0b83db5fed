"""Kernels whose last elements have other bits."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline.replay import tails
from frostline.replay.tails import comes_out_even, differs_at_the_end

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "_sensitive", {})


EVEN: dict[str, tuple[torch.Tensor, str, int, bool]] = {
    "one-round": (torch.ones(32), "AVX512", 1, True),
    "half-a-round": (torch.ones(16), "AVX512", 1, False),
    "smaller-registers": (torch.ones(16), "AVX2", 1, True),
    "any-shape": (torch.ones(4, 3, 8), "AVX512", 1, True),
    "one-too-many": (torch.ones(33), "AVX512", 1, False),
    "doubles": (torch.ones(16, dtype=torch.float64), "AVX512", 1, True),
    "halves": (torch.ones(32, dtype=torch.bfloat16), "AVX512", 1, False),
    "even-on-each-thread": (torch.ones(65536), "AVX512", 2, True),
    "not-on-each-thread": (torch.ones(65536 + 32), "AVX512", 2, False),
    "too-small-for-threads": (torch.ones(32 * 3), "AVX512", 2, True),
}


@pytest.mark.parametrize("name", EVEN)
def test_what_comes_out_even(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, processor, threads, is_even = EVEN[name]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert comes_out_even(tensor) is is_even


KERNELS = {
    "tanh": (aten.tanh.default, ()),
    "sigmoid": (aten.sigmoid.default, ()),
    "exp": (aten.exp.default, ()),
    "gelu": (aten.gelu.default, ()),
    "silu": (aten.silu.default, ()),
    "softplus": (aten.softplus.default, ()),
    "elu": (aten.elu.default, ()),
    "mish": (aten.mish.default, ()),
    "log": (aten.log.default, ()),
    "sin": (aten.sin.default, ()),
    "erf": (aten.erf.default, ()),
    "rsqrt": (aten.rsqrt.default, ()),
    "power": (aten.pow.Tensor_Scalar, (1.7,)),
    "leaky-relu": (aten.leaky_relu.default, (0.1,)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_called_insensitive_gives_the_same_bits_everywhere(name: str) -> None:
    func, options = KERNELS[name]

    @given(seed=st.integers(0, 1000), shift=st.integers(1, 4))
    def check(seed: int, shift: int) -> None:
        x = torch.randn(5, 9, generator=torch.Generator().manual_seed(seed)) * 2
        result = func(x, *options)
        if not differs_at_the_end(func, (x, *options), {}, result):
            moved = func(x.roll(shift, 0), *options)
            assert torch.equal(moved.nan_to_num(), result.roll(shift, 0).nan_to_num())

    check()


def uneven(x: Any) -> Any:
    """As a kernel with another approximation for what is left over."""
    result = 2 * x
    result.view(-1)[-1] += 1e-6
    return result


class Kernel:
    """A function in an operation's clothes, which counts its calls."""

    tags = (torch.Tag.pointwise,)
    numbers = itertools.count()

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, 0
        self.name = f"kernel {next(self.numbers)}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)

    def __str__(self) -> str:
        return self.name


def asked(function: Any, *args: Any, **kwargs: Any) -> bool:
    return differs_at_the_end(Kernel(function), args, kwargs, function(*args, **kwargs))


X = torch.randn(5, 9)


def test_a_kernel_with_another_end_is_found() -> None:
    assert asked(uneven, X)
    assert asked(lambda x, y: uneven(x) + y, X, X)
    assert asked(lambda x, scale: uneven(x) * scale, X, 2.0)
    assert not asked(lambda x: 2 * x, X)


def test_strides_are_those_of_the_pass() -> None:
    """A kernel may be even for contiguous memory alone."""
    assert asked(lambda x: 2 * x if x.is_contiguous() else uneven(x.contiguous()), X.t())


def test_what_cannot_be_tried_is_taken_for_sensitive() -> None:
    calls: list[int] = []

    def fails_later(x: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError
        return 2 * x

    assert asked(fails_later, X)


NOT_ASKED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "even": (uneven, (torch.randn(32, 9),)),
    "integers": (lambda x: x + 1, (torch.ones(5, 9, dtype=torch.int64),)),
    "comparison": (lambda x: x > 0, (X,)),
    "no-tensor": (lambda x: [uneven(x)], (X,)),
    "made-from-a-number": (lambda x: torch.full((5, 9), x), (2.0,)),
}


@pytest.mark.parametrize("name", NOT_ASKED)
def test_what_need_not_be_tried(name: str) -> None:
    function, args = NOT_ASKED[name]
    kernel = Kernel(function)
    assert not differs_at_the_end(kernel, args, {}, function(*args))
    assert kernel.calls == 0


def test_only_elementwise_kernels_are_asked() -> None:
    kernel = Kernel(uneven)
    kernel.tags = ()
    assert not differs_at_the_end(kernel, (X,), {}, uneven(X))


def test_the_answer_is_remembered() -> None:
    kernel = Kernel(uneven)
    assert differs_at_the_end(kernel, (X,), {}, uneven(X))
    before = kernel.calls
    assert differs_at_the_end(kernel, (X + 1,), {}, uneven(X))
    assert kernel.calls == before > 0
    other = torch.randn(3, 9)
    assert differs_at_the_end(kernel, (other,), {}, uneven(other))
    assert kernel.calls > before


def test_no_random_numbers_are_drawn() -> None:
    before = torch.get_rng_state()
    asked(uneven, X)
    assert torch.equal(torch.get_rng_state(), before)
