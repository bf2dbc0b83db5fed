"""Digests of what an entry depends on: the content of inputs, sample by sample, and the machine."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from frostline.proof import fingerprint
from frostline.proof.fingerprint import has_plain_content

FORMAT = 2
"""Raised when what is recorded, or how it is keyed, changes: older entries are then not found."""


def digest_of(*parts: object) -> bytes:
    """16 bytes over the ``repr`` of plain values, or over bytes as they are.

    >>> digest_of("a", 1) == digest_of("a", 1), digest_of("a", 1) == digest_of("a1")
    (True, False)
    """
    data = [part if isinstance(part, bytes) else repr(part).encode() for part in parts]
    sizes = b"".join(len(part).to_bytes(8, "little") for part in data)
    return xxhash.xxh3_128_digest(b"".join((sizes, *data)))


def sample_digests(tensor: Tensor, samples: int) -> list[bytes]:
    """One digest for each sample's part of a tensor.

    A tensor of which no dimension counts samples (see :func:`batch_dim`) belongs to every sample
    as a whole.

    Args:
        tensor: any tensor; it is only read.
        samples: the batch size.

    >>> import torch
    >>> one, other = sample_digests(torch.tensor([[1, 2], [1, 2]]), 2)
    >>> one == other
    True
    """
    dim = batch_dim(tensor, samples)
    if dim is None or not has_plain_content(tensor) or tensor.numel() == 0:
        return [fingerprint(tensor).encode()] * samples
    plain = tensor.detach().resolve_conj().resolve_neg().movedim(dim, 0).contiguous()
    size = plain.shape[0]
    head = f"{plain.dtype}{tuple(plain.shape[1:])}{size // samples}".encode()
    rows = plain.reshape(-1).view(torch.uint8).view(samples, -1)
    if rows.is_cpu:
        content: np.ndarray = rows.numpy()
        return [head + xxhash.xxh3_128_digest(row.data) for row in content]
    return [head + row.tobytes() for row in _hashed_on_device(rows).cpu().numpy()]


def batch_dim(tensor: Tensor, samples: int) -> int | None:
    """The dimension that counts samples: the first, if it may, else one of just that size.

    >>> batch_dim(torch.ones(6, 3), 3), batch_dim(torch.ones(5, 3), 3), batch_dim(torch.ones(5), 3)
    (0, 1, None)
    """
    if tensor.ndim and tensor.shape[0] and tensor.shape[0] % samples == 0:
        return 0
    return next((dim for dim, size in enumerate(tensor.shape) if size == samples), None)


def _hashed_on_device(rows: Tensor) -> Tensor:
    """Two 64-bit sums a row, each word times a multiplier of its place: int64 [samples, 2]."""
    words = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 4)).view(torch.int32).long()
    places = torch.arange(words.shape[1], device=rows.device)
    sums = []
    for seed in (0x9E3779B97F4A7C1, 0x3F58476D1CE4E5B):
        mixed = (places + 1) * seed
        mixed = (mixed ^ (mixed >> 29)) * 0x14D049BB133111E
        mixed = mixed ^ (mixed >> 31) | 1
        sums.append((words * mixed).sum(1))
    return torch.stack(sums, dim=1)


def chained(before: Iterable[bytes], columns: Sequence[Iterable[bytes]]) -> list[bytes]:
    """Each sample's digest so far, with what further tensors hold of it."""
    return [xxhash.xxh3_128_digest(b"".join(parts)) for parts in zip(before, *columns, strict=True)]


@functools.cache
def machine() -> str:
    """What the last bits of a kernel's result depend on, besides its inputs."""
    return "|".join(
        (
            torch.__version__,
            platform.machine(),
            _processor(),
            torch.backends.cpu.get_cpu_capability(),
            torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        )
    )


def kernel_settings() -> tuple[object, ...]:
    """Settings of torch that change which kernels run."""
    return (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.benchmark,
        *(
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        ),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("model name")), platform.processor())
