"""Tensor records: of a live model, and of a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

from torch import nn
from torch.nn.parameter import is_lazy

from frostline.checkpoint.listing import Listing
from frostline.naming import Alias, take_inventory, tensor_bytes
from frostline.report.tree import TensorRecord


def model_records(model: nn.Module, frozen_buffers: Collection[str] = ()) -> list[TensorRecord]:
    """Every parameter and buffer of a model under every name, in definition order.

    Reads no content, so it works on the meta device. Parameters whose memory overlaps are
    recorded as one, under the name that comes first.

    Args:
        model: the model, wrapped or not.
        frozen_buffers: names of buffers that a freeze holds, as ``Frozen.buffers`` lists them.

    >>> from torch import nn
    >>> [(r.name, r.frozen) for r in model_records(nn.Linear(2, 1).requires_grad_(False))]
    [('weight', True), ('bias', True)]
    """
    inventory = take_inventory(model)
    found: dict[int, TensorRecord] = {}
    for group in inventory.groups:
        for alias in group.aliases:
            frozen = not alias.tensor.requires_grad
            found[alias.position] = _record(alias, "parameter", frozen=frozen, first=group.name)
        # The whole group's size, which is more than the first one's where they overlap in part.
        head = group.aliases[0].position
        found[head] = replace(found[head], elements=group.numel, nbytes=group.nbytes)
    first_name: dict[int, str] = {}
    for alias in inventory.buffers:
        first = first_name.setdefault(id(alias.tensor), alias.name)
        # A freeze lists a shared buffer once, under either of its names.
        held = alias.name in frozen_buffers or first in frozen_buffers
        found[alias.position] = _record(alias, "buffer", frozen=held or None, first=first)
    return [record for _, record in sorted(found.items())]


def module_types(model: nn.Module) -> dict[str, str]:
    """Canonical module name → class name; of a wrapper and what it wraps, the inner one.

    >>> from torch import nn
    >>> module_types(nn.Sequential(nn.ReLU()))
    {'': 'Sequential', '0': 'ReLU'}
    """
    return {name: type(module).__name__ for name, module, _ in take_inventory(model).placements}


def listing_records(
    listing: Listing, frozen: Mapping[str, bool | None] | None = None
) -> list[TensorRecord]:
    """The tensors of a checkpoint.

    Args:
        listing: what :func:`frostline.checkpoint.listing.read_listing` found.
        frozen: tensor name → whether a plan freezes it; left out where there is no plan.

    >>> from pathlib import Path
    >>> from frostline.checkpoint.stored import StoredTensor
    >>> fc = StoredTensor(name="fc.weight", shape=(2, 3), dtype="float32", nbytes=24)
    >>> listing = Listing(path=Path("a.pt"), files=(Path("a.pt"),), tensors=(fc,))
    >>> listing_records(listing, {"fc.weight": True})[0].frozen
    True
    """
    states = frozen or {}
    return [
        TensorRecord(
            name=tensor.name,
            kind="buffer" if tensor.is_buffer else "parameter",
            shape=tensor.shape,
            dtype=tensor.dtype,
            elements=tensor.elements,
            nbytes=tensor.nbytes,
            frozen=states.get(tensor.name),
            same_as=tensor.same_as,
        )
        for tensor in listing.tensors
    ]


def _record(
    alias: Alias,
    kind: Literal["parameter", "buffer"],
    *,
    frozen: bool | None,
    first: str,
) -> TensorRecord:
    tensor = alias.tensor
    lazy = is_lazy(tensor)
    return TensorRecord(
        name=alias.name,
        kind=kind,
        shape=None if lazy else tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        elements=0 if lazy else tensor.numel(),
        nbytes=tensor_bytes(tensor),
        frozen=frozen,
        same_as=None if alias.name == first else first,
    )
