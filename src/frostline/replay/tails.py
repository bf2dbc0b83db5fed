"""Elementwise kernels that compute the last elements of a tensor with other bits than the rest.

A CPU kernel takes two vector registers of elements at a time and what is left over one by one,
often with another approximation of the same function. If a batch's elements do not come out even,
the sample that happens to be last gets other bits. Whether a kernel does so is tried out, on the
machine at hand.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_GRAIN = 32768
"""Elements from which a kernel is shared out to threads (at::internal::GRAIN_SIZE)."""
_ORDERS = 24
_sensitive: dict[tuple[Any, ...], bool] = {}


def differs_at_the_end(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> bool:
    """Whether a sample's bits in an elementwise result depend on its place in the batch.

    Args:
        func: the operation, as a dispatch mode gets it.
        args: its arguments.
        kwargs: by keyword.
        result: what it gave.
    """
    if torch.Tag.pointwise not in func.tags or not isinstance(result, Tensor):
        return False
    if not result.is_cpu or not result.dtype.is_floating_point or comes_out_even(result):
        return False
    first = args[0] if args else None
    if not isinstance(first, Tensor) or not first.dtype.is_floating_point:
        return False
    others = [None if isinstance(value, Tensor) else value for value in args[1:]]
    options = repr((others, sorted(kwargs.items(), key=str)))
    key = str(func), first.dtype, tuple(first.shape), first.stride(), options
    if key not in _sensitive:
        _sensitive[key] = _try_out(func, first, args, kwargs)
    return _sensitive[key]


def comes_out_even(tensor: Tensor) -> bool:
    """Whether every element is computed in full registers, on each thread.

    >>> comes_out_even(torch.ones(4, 64)), comes_out_even(torch.ones(5, 9))
    (True, False)
    """
    at_once = 2 * _register_bytes() // tensor.element_size()
    count = tensor.numel()
    threads = min(torch.get_num_threads(), math.ceil(count / _GRAIN))
    share = math.ceil(count / threads) if threads > 1 else count
    return count % at_once == 0 and share % at_once == 0


def _register_bytes() -> int:
    return 64 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 32


def _try_out(func: Any, first: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Compute the same elements in many orders, in memory of the same form."""
    generator = torch.Generator().manual_seed(0)

    def run(given: Tensor) -> Tensor:
        laid = torch.empty_strided(first.shape, first.stride(), dtype=first.dtype)
        laid.copy_(given.view(first.shape))
        alike = [
            laid.clone() if isinstance(v, Tensor) and v.shape == first.shape else v
            for v in args[1:]
        ]
        return torch.as_tensor(func(laid, *alike, **kwargs)).reshape(-1)

    try:
        for _ in range(_ORDERS):
            values = torch.randn(first.numel(), generator=generator).to(first.dtype) * 2
            order = torch.randperm(values.numel(), generator=generator)
            usual, moved = run(values), run(values[order])
            if usual.numel() != values.numel():
                return False  # broadcast against something larger: exact arithmetic, as a rule
            if not torch.equal(moved.nan_to_num(), usual[order].nan_to_num()):
                return True
    except (RuntimeError, TypeError, IndexError):
        return True  # it can't be tried: take it for sensitive
    return False
