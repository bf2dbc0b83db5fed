"""What a frozen tensor was: enough to say later whether, where and by how much it moved.

A fingerprint alone tells only that something moved. A copy tells all, and costs the memory that
freezing is meant to save. So small tensors (every bias, every BatchNorm statistic) are copied
within a fixed budget, and of a large one a fingerprint is kept and a sample of its elements:
weight decay, momentum and a forgotten ``load_state_dict`` move all of them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from frostline.naming import tensor_bytes
from frostline.proof.fingerprint import as_bytes, fingerprint, has_plain_content
from frostline.shards import local_part

COPY_BUDGET_BYTES = 64 << 20
"""Bytes of copies that one freeze may hold, smallest tensors first."""

SAMPLE_SIZE = 1024
"""Elements kept of a tensor that is not copied, evenly spaced."""


class Reference(NamedTuple):
    """A tensor as it was.

    Attributes:
        shape: its shape; None for a nested tensor, which has no single one.
        dtype: its dtype.
        elements: number of elements.
        digest: its fingerprint, or None where ``values`` is a whole copy, or on meta.
        values: flat CPU copy of all elements, or of a sample; None if it has no plain content.
    """

    shape: tuple[int, ...] | None
    dtype: torch.dtype
    elements: int
    digest: str | None
    values: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Movement:
    """How far a tensor moved from its reference.

    Attributes:
        compared: elements that were compared (all, or the sample's); 0 if none could be.
        moved: how many of those differ in at least one bit.
        max_abs: the largest absolute difference among them (inf or nan if one side is).
    """

    compared: int
    moved: int
    max_abs: float


def take_references(
    tensors: Sequence[Tensor], *, budget_bytes: float | None = None
) -> list[Reference]:
    """Record tensors as they are now, in the order given; copies stay within the budget.

    Of a tensor that is spread over ranks, this rank's part is recorded, here and below.

    Args:
        tensors: what to record.
        budget_bytes: bytes of copies to hold at most; COPY_BUDGET_BYTES by default.
    """
    tensors = [local_part(tensor) for tensor in tensors]
    budget = COPY_BUDGET_BYTES if budget_bytes is None else budget_bytes
    references = [_without_content(tensor) for tensor in tensors]
    sizes = {n: tensor_bytes(tensors[n]) for n, known in enumerate(references) if known is None}
    copied: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index in sorted(sizes, key=sizes.__getitem__):
        tensor = tensors[index]
        if sizes[index] <= budget and has_plain_content(tensor):
            budget -= sizes[index]
            copied.setdefault((tensor.dtype, tensor.device), []).append(index)
        else:
            references[index] = _sample(tensor)
    for members in copied.values():
        copies = _copies([tensors[index] for index in members])
        for index, values in zip(members, copies, strict=True):
            references[index] = _copied(tensors[index], values)
    return [reference for reference in references if reference is not None]


def movement(reference: Reference, tensor: Tensor) -> Movement | None:
    """None if ``tensor`` holds exactly what it held; else how far it moved."""
    tensor = local_part(tensor)
    if tensor.dtype != reference.dtype or shape_of(tensor) != reference.shape:
        return Movement(compared=0, moved=0, max_abs=float("nan"))
    if reference.digest is None and reference.values is None:
        return None if tensor.is_meta else Movement(compared=0, moved=0, max_abs=float("nan"))
    if reference.digest is None:
        assert reference.values is not None
        now = tensor.detach().reshape(-1).cpu()
        if torch.equal(as_bytes(now), as_bytes(reference.values)):
            return None
        return difference(reference.values, now)
    if fingerprint(tensor) == reference.digest:
        return None
    if reference.values is None:
        return Movement(compared=0, moved=0, max_abs=float("nan"))
    return difference(reference.values, _evenly_spaced(tensor))


def _without_content(tensor: Tensor) -> Reference | None:
    """The reference of a tensor on meta; None if there is content to look at."""
    if is_lazy(tensor) or not tensor.is_meta or tensor.is_nested:
        return None
    return _shape_alone(tuple(tensor.shape), tensor.dtype)


@lru_cache(maxsize=1024)
def _shape_alone(shape: tuple[int, ...], dtype: torch.dtype) -> Reference:
    return Reference(shape=shape, dtype=dtype, elements=prod(shape), digest=None, values=None)


def _copies(tensors: list[Tensor]) -> Sequence[Tensor]:
    """Flat CPU copies of tensors of one dtype and device.

    Made as one tensor and cut into views: a large model has 100,000 small tensors, and a call for
    each of them is what would take the time.
    """
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    try:
        whole = torch.cat(flat)
    except RuntimeError:  # a dtype that cannot be joined (float4)
        return [part.to("cpu", copy=True) for part in flat]
    return torch.split(whole.cpu(), [len(part) for part in flat])


def _copied(tensor: Tensor, values: Tensor) -> Reference:
    return Reference(
        shape=shape_of(tensor),
        dtype=tensor.dtype,
        elements=values.numel(),
        digest=None,
        values=values,
    )


def _sample(tensor: Tensor) -> Reference:
    return Reference(
        shape=shape_of(tensor),
        dtype=tensor.dtype,
        elements=tensor.numel(),
        digest=fingerprint(tensor),
        values=_evenly_spaced(tensor) if has_plain_content(tensor) else None,
    )


def shape_of(tensor: Tensor) -> tuple[int, ...] | None:
    """Its shape; None for a nested tensor, which has no single one."""
    return None if tensor.is_nested else tuple(tensor.shape)


def _evenly_spaced(tensor: Tensor) -> Tensor:
    """A CPU copy of up to SAMPLE_SIZE elements, spread over the whole tensor."""
    count = min(SAMPLE_SIZE, tensor.numel())
    flat = torch.linspace(0, tensor.numel() - 1, count, dtype=torch.float64).long()
    # Indexed dimension by dimension: flattening a strided tensor first would copy all of it.
    places = []
    for size in reversed(tensor.shape):
        places.append(flat % size)
        flat = flat // size
    index = tuple(place.to(tensor.device) for place in reversed(places))
    return tensor.detach()[index].reshape(-1).to("cpu", copy=True)


def difference(before: Tensor, now: Tensor) -> Movement:
    """How far two flat CPU tensors of one dtype and size are apart; ``moved`` 0 if nowhere."""
    itemsize = before.element_size()
    bits_differ = as_bytes(before).view(-1, itemsize) != as_bytes(now).view(-1, itemsize)
    moved = bits_differ.any(dim=1)
    return Movement(
        compared=before.numel(),
        moved=int(moved.sum()),
        max_abs=_largest_amount(before, now, moved),
    )


def _largest_amount(before: Tensor, now: Tensor, moved: Tensor) -> float:
    wide = torch.complex128 if before.is_complex() else torch.float64
    try:
        amounts = (now[moved].to(wide) - before[moved].to(wide)).abs()
    except RuntimeError:  # a packed dtype (float4, int4) that torch cannot index or convert
        return float("nan")
    return float(amounts.max()) if amounts.numel() else 0.0
