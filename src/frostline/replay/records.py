"""Checks that both kinds of store make of what they are given."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frostline.errors import ReplayError

DIGEST_BYTES = 16
"""Bytes of a digest."""

_KEY = re.compile(r"[0-9a-f]{32}")


def check_shelf(key: str, record_bytes: int) -> None:
    """Check a shelf's key and the size of its records.

    Raises:
        ReplayError: the key is not 32 hex digits, or the size is below one byte.

    >>> check_shelf("0" * 32, 100)
    >>> check_shelf("../up", 100)
    Traceback (most recent call last):
    frostline.errors.ReplayError: a shelf's key is 32 lowercase hex digits, not '../up'
    """
    if not _KEY.fullmatch(key):
        raise ReplayError(f"a shelf's key is 32 lowercase hex digits, not {key!r}")
    if record_bytes < 1:
        raise ReplayError(f"a record has at least one byte, not {record_bytes}")


def check_digests(digests: Sequence[bytes]) -> None:
    """Check that every digest has its 16 bytes.

    Raises:
        ReplayError: one has not.

    >>> check_digests([b"a" * 16])
    """
    if any(len(digest) != DIGEST_BYTES for digest in digests):
        raise ReplayError(f"a digest has {DIGEST_BYTES} bytes; one of these has not: {digests!r}")


def check_records(
    digests: Sequence[bytes], records: Tensor, record_bytes: int
) -> npt.NDArray[np.uint8]:
    """The records as an array (shared memory), once their form is checked.

    Raises:
        ReplayError: they are not uint8 [len(digests), record_bytes] on the CPU.

    >>> import torch
    >>> check_records([b"a" * 16], torch.ones(1, 2, dtype=torch.uint8), 2)
    array([[1, 1]], dtype=uint8)
    """
    wanted = (len(digests), record_bytes)
    if records.dtype != torch.uint8 or records.shape != wanted or records.device.type != "cpu":
        raise ReplayError(
            f"records are uint8 {list(wanted)} on the CPU, one for each digest; got"
            f" {records.dtype} {list(records.shape)} on {records.device}"
        )
    return np.ascontiguousarray(records.numpy())


def new_records(count: int, record_bytes: int) -> Tensor:
    """Memory for ``count`` records: uint8 [count, record_bytes] on the CPU, not yet filled.

    A plain tensor even in ``torch.inference_mode()``: it may be used after it.

    >>> new_records(2, 3).shape
    torch.Size([2, 3])
    """
    with torch.inference_mode(False):
        return torch.empty((count, record_bytes), dtype=torch.uint8, device="cpu")
