"""How often tensors were written to, as far as autograd counts."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable

from torch import Tensor

from frostline.proof.fingerprint import quick_key

UNCOUNTED = -1
"""In the place of an inference tensor's version: autograd counts no writes to it."""

_version = operator.attrgetter("_version")


def versions_of(tensors: Iterable[Tensor]) -> list[int]:
    """The versions of tensors.

    It is asked for before every pass, so in C as long as no tensor is an inference tensor.

    >>> import torch
    >>> with torch.inference_mode():
    ...     cache = torch.ones(2)
    >>> versions_of([torch.ones(2).add_(1), cache])
    [1, -1]
    """
    held = list(tensors)
    try:
        return list(map(_version, held))
    except RuntimeError:
        return [UNCOUNTED if tensor.is_inference() else tensor._version for tensor in held]


def marks_of(tensors: Iterable[Tensor]) -> list[Hashable]:
    """The versions of tensors; of those that have none, what tells their content apart.

    >>> import torch
    >>> with torch.inference_mode():
    ...     cache = torch.ones(2)
    ...     before = marks_of([cache])
    ...     _ = cache.add_(1)
    >>> marks_of([cache]) == before
    False
    """
    held = list(tensors)
    try:
        return list(map(_version, held))
    except RuntimeError:
        return [quick_key(t) if t.is_inference() else t._version for t in held]
