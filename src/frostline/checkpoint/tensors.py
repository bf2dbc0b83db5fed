"""The tensors of a live model that a checkpoint would hold, each once, with all of its names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.errors import CheckpointError
from frostline.freezing.flags import was_thawed
from frostline.freezing.modes import pin_of
from frostline.naming import Alias, Inventory, take_inventory
from frostline.proof import fingerprint
from frostline.shards import whole


@dataclass(frozen=True, kw_only=True)
class ModelTensor:
    """A parameter or a persistent buffer of a model.

    Attributes:
        names: its canonical names, in definition order; several if it is tied.
        kind: ``parameter`` or ``buffer``.
        tensor: the tensor itself.
        group: position of its group in the inventory; None for a buffer.
        may_have_moved: a parameter that trains, or was made trainable by Frostline before; a
            buffer that no freeze holds.
    """

    names: tuple[str, ...]
    kind: Literal["parameter", "buffer"]
    tensor: Tensor
    group: int | None
    may_have_moved: bool

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        """As torch names it, such as ``float32``."""
        return str(self.tensor.dtype).removeprefix("torch.")


def fingerprints(model: nn.Module) -> dict[str, str]:
    """Name → fingerprint of every parameter and persistent buffer, as they are now.

    Taken before training it is what ``fl.save_trained(model, path, base=…)`` compares with. A tied
    tensor is listed under its first name. Reads the model once, at memory speed. Of a sharded
    model the fingerprints are those of the whole: all ranks call this together.

    Raises:
        CheckpointError: (a ValueError) a tensor has no content (meta, lazy).

    >>> sorted(fingerprints(nn.Linear(2, 1)))
    ['bias', 'weight']
    """
    return {found.name: digest(found) for found in model_tensors(take_inventory(model))}


def model_tensors(inventory: Inventory) -> list[ModelTensor]:
    """What a checkpoint of the model would hold, in definition order."""
    found = [*_parameters(inventory), *_buffers(inventory.buffers)]
    positions = {a.name: a.position for g in inventory.groups for a in g.aliases}
    positions |= {alias.name: alias.position for alias in inventory.buffers}
    return sorted(found, key=lambda each: positions[each.name])


def digest(found: ModelTensor) -> str:
    """The tensor's fingerprint, of a sharded one that of the whole.

    Raises CheckpointError if there is no content.
    """
    return fingerprint(gathered(found).tensor)


def gathered(found: ModelTensor) -> ModelTensor:
    """The tensor in one piece: what is spread over ranks is gathered, by all of them together.

    Raises CheckpointError if there is no content.
    """
    tensor = found.tensor
    if is_lazy(tensor) or tensor.is_meta:
        raise CheckpointError(
            f"{found.name} has no content ({'lazy' if is_lazy(tensor) else 'on meta'}): load the"
            " model's weights first"
        )
    content = whole(tensor)
    return found if content is tensor else replace(found, tensor=content)


def _parameters(inventory: Inventory) -> Iterator[ModelTensor]:
    for number, group in enumerate(inventory.groups):
        # One memory, so one fate.
        moved = any(p.requires_grad or was_thawed(p) for p in group.named.values())
        for names, tensor in _by_identity(group.aliases):
            yield ModelTensor(
                names=names, kind="parameter", tensor=tensor, group=number, may_have_moved=moved
            )


def _buffers(aliases: Iterable[Alias]) -> Iterator[ModelTensor]:
    persistent = [a for a in aliases if not _is_transient(a)]
    held = {id(a.tensor): True for a in persistent}
    for alias in persistent:
        held[id(alias.tensor)] &= _is_held(alias.owner)
    for names, tensor in _by_identity(persistent):
        yield ModelTensor(
            names=names,
            kind="buffer",
            tensor=tensor,
            group=None,
            may_have_moved=not held[id(tensor)],
        )


def _by_identity(aliases: Iterable[Alias]) -> list[tuple[tuple[str, ...], Tensor]]:
    found: dict[int, tuple[tuple[str, ...], Tensor]] = {}
    for alias in aliases:
        names, _ = found.get(id(alias.tensor), ((), None))
        found[id(alias.tensor)] = ((*names, alias.name), alias.tensor)
    return list(found.values())


def _is_transient(alias: Alias) -> bool:
    leaf = alias.name.rpartition(".")[2]
    return leaf in alias.owner._non_persistent_buffers_set


def _is_held(owner: nn.Module) -> bool:
    pin = pin_of(owner)
    return pin is not None and pin.wish.held_buffers
