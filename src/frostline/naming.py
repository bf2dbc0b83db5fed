"""What things are called: canonical names, tied tensors, storage aliases.

A model's tensors are reached under raw names such as ``module._orig_mod.encoder.fc1.weight``.
The canonical name leaves out what only a wrapper put there (``encoder.fc1.weight``), so a plan
written for the bare model holds for the compiled or the distributed one. A tensor may have
several names (tied weights), and several parameters may lie on the same memory; freezing one of
them and training the other moves both, so whatever decides about tensors decides about
:class:`TensorGroup`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.collector import collector_paused
from frostline.errors import ModelTypeError
from frostline.shards import Place, sharded_parameters

# These attribute names are chosen to be unmistakable by the wrappers that use them:
# torch.compile, FSDP1, activation checkpointing, Lightning Fabric.
_WRAPPER_ATTRIBUTES = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)
# "module" is also a fair name for a user's own attribute, so it is skipped only below a class
# that is known to wrap. Compared by class name: no wrapper's package needs to be importable.
_WRAPPER_CLASSES = frozenset(
    {
        "AveragedModel",
        "DataParallel",
        "DeepSpeedEngine",
        "DistributedDataParallel",
        "FullyShardedDataParallel",
        "PipelineModule",
    }
)


class Placement(NamedTuple):
    """One place at which a module hangs in the model.

    Attributes:
        name: canonical name; a wrapper and what it wraps share one.
        module: the module.
        start: the position that the module's first tensor has, or would have.
    """

    name: str
    module: nn.Module
    start: int


class Alias(NamedTuple):
    """One name under which a parameter or buffer is reached.

    Attributes:
        name: canonical name, wrapper prefixes left out.
        owner_name: canonical name of the module that holds the tensor ("" for the root).
        owner: that module.
        tensor: the parameter or buffer itself.
        position: rank in definition order over the whole model, own tensors before children's.
    """

    name: str
    owner_name: str
    owner: nn.Module
    tensor: Tensor
    position: int


class TensorGroup:
    """Parameters that can only be frozen or trained together.

    Usually one parameter with one name. Tied weights are one parameter with several names;
    storage aliases are several parameters whose memory overlaps.

    Attributes:
        aliases: every name of every parameter of the group, in definition order.
        firsts: the first name of each parameter, each object once (compared by identity).
        named: the same as first name → parameter.
    """

    __slots__ = ("aliases", "firsts", "named")

    def __init__(self, aliases: tuple[Alias, ...]) -> None:
        self.aliases = aliases
        self.firsts = aliases if len(aliases) == 1 else _firsts(aliases)
        self.named: dict[str, nn.Parameter] = {
            alias.name: alias.tensor  # type: ignore[misc]  # the inventory made it from parameters
            for alias in self.firsts
        }

    @property
    def name(self) -> str:
        """The name that comes first in definition order, as in ``named_parameters``."""
        return self.aliases[0].name

    @property
    def nbytes(self) -> int:
        """Bytes that the parameters occupy, memory that they share counted once."""
        parameters = list(self.named.values())
        total = sum(tensor_bytes(p) for p in parameters)
        if len(parameters) == 1:
            return total
        spans = [span for p in parameters if (span := memory_span(p)) is not None]
        covered = max(end for _, _, end in spans) - min(start for _, start, _ in spans)
        return min(covered, total)

    @property
    def numel(self) -> int:
        """Number of scalars, memory that the parameters share counted once."""
        first = next(iter(self.named.values()))
        if len(self.named) == 1:
            return 0 if is_lazy(first) else first.numel()
        return self.nbytes // first.element_size()


class Inventory(NamedTuple):
    """Everything nameable in a model, in definition order.

    Attributes:
        placements: the modules, parents first; a shared module once for each of its names.
        groups: the model's parameters, grouped by identity and by memory.
        buffers: one entry per name of a buffer.
    """

    placements: tuple[Placement, ...]
    groups: tuple[TensorGroup, ...]
    buffers: tuple[Alias, ...]


@collector_paused()
def take_inventory(model: nn.Module) -> Inventory:
    """List a model's modules, parameter groups and buffers under canonical names.

    Linear in the number of names. Reads no tensor content, so it works on the meta device.

    >>> from torch import nn
    >>> [group.name for group in take_inventory(nn.Sequential(nn.Linear(2, 2))).groups]
    ['0.weight', '0.bias']
    """
    if not isinstance(model, nn.Module):
        raise ModelTypeError(
            f"expected a model (torch.nn.Module), got {type(model).__name__}; the model comes first"
        )
    placements: list[Placement] = []
    parameters: list[Alias] = []
    buffers: list[Alias] = []
    position = 0
    sharded = sharded_parameters(model)
    for owner_name, owner in walk_modules(model):
        placements.append(Placement(owner_name, owner, position))
        prefix = f"{owner_name}." if owner_name else ""
        for listing, held in ((parameters, owner._parameters), (buffers, owner._buffers)):
            for key, tensor in held.items():
                if tensor is not None:
                    if sharded:  # not what is gathered for the time being
                        tensor = sharded.get(Place(id(owner), key), tensor)
                    listing.append(Alias(prefix + key, owner_name, owner, tensor, position))
                    position += 1
    return Inventory(tuple(placements), _group(parameters), tuple(buffers))


def walk_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (canonical name, module), parents first, in definition order.

    Unlike ``named_modules`` it yields a shared module under each of its names, and gives a
    wrapper and what it wraps the same name.
    """
    # An explicit stack: a generator that recurses is quadratic in the depth.
    stack: list[tuple[str, nn.Module, frozenset[int]]] = [("", model, frozenset())]
    while stack:
        name, module, above = stack.pop()
        yield name, module
        above = above | {id(module)}
        children = [
            (child_name(name, module, key), child, above)
            for key, child in module._modules.items()
            # A module that holds itself (a back-reference to its parent) is walked once.
            if child is not None and id(child) not in above
        ]
        stack.extend(reversed(children))


def child_name(parent_name: str, parent: nn.Module, key: str) -> str:
    """Canonical name of ``parent``'s child ``key``: the parent's own if the parent is a wrapper."""
    if key in _WRAPPER_ATTRIBUTES:
        return parent_name
    if key == "module" and any(base.__name__ in _WRAPPER_CLASSES for base in type(parent).__mro__):
        return parent_name
    return f"{parent_name}.{key}" if parent_name else key


def canonical_keys(keys: list[str]) -> list[str]:
    """Canonical names for a checkpoint's keys, where there are no modules to look at.

    ``module.`` goes only if every key starts with it: then a wrapper was saved.

    >>> canonical_keys(["module._orig_mod.fc.weight", "module._orig_mod.fc.bias"])
    ['fc.weight', 'fc.bias']
    """
    stripped = [
        ".".join(part for part in key.split(".") if part not in _WRAPPER_ATTRIBUTES) for key in keys
    ]
    if stripped and all(key.startswith("module.") for key in stripped):
        return [key.removeprefix("module.") for key in stripped]
    return stripped


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; for a sparse tensor, of its indices and values."""
    if is_lazy(tensor):
        return 0
    if tensor.is_sparse:
        detached = tensor.detach()
        return tensor_bytes(detached._indices()) + tensor_bytes(detached._values())
    return tensor.numel() * tensor.element_size()


def memory_span(tensor: Tensor) -> tuple[int, int, int] | None:
    """(storage, first byte, end byte) that a tensor may touch; None if it has no such memory.

    The storage is told apart by the address of its C++ object: ``data_ptr`` is 0 for every
    meta and every empty tensor.
    """
    storage = _storage_of(tensor)
    if storage is None:
        return None
    local = getattr(tensor, "_local_tensor", tensor)
    itemsize = local.element_size()
    start = int(local.storage_offset()) * itemsize
    if local.is_contiguous():
        return storage, start, start + int(local.numel()) * itemsize
    last = sum((size - 1) * step for size, step in zip(local.shape, local.stride(), strict=True))
    return storage, start, start + (int(last) + 1) * itemsize


def _storage_of(tensor: Tensor) -> int | None:
    if is_lazy(tensor):
        return None
    if type(tensor) is not nn.Parameter:
        tensor = getattr(tensor, "_local_tensor", tensor)  # a DTensor's shard
    try:
        storage: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse, quantised and other opaque layouts
        return None
    return storage if tensor.numel() else None


def _group(aliases: list[Alias]) -> tuple[TensorGroup, ...]:
    """Join names of one parameter, and parameters whose memory overlaps."""
    by_tensor: dict[int, list[Alias]] = {}
    by_storage: dict[int, list[int]] = {}
    for alias in aliases:
        key = id(alias.tensor)
        if key in by_tensor:
            by_tensor[key].append(alias)
            continue
        by_tensor[key] = [alias]
        storage = _storage_of(alias.tensor)
        if storage is not None:
            by_storage.setdefault(storage, []).append(key)
    leader: dict[int, int] = {}
    for keys in by_storage.values():
        if len(keys) > 1:
            leader.update(_leaders({key: by_tensor[key][0].tensor for key in keys}))
    if not leader:  # in definition order already
        return tuple([TensorGroup(tuple(names)) for names in by_tensor.values()])
    groups: dict[int, list[Alias]] = {}
    for key, names in by_tensor.items():
        groups.setdefault(leader.get(key, key), []).extend(names)
    ordered = [sorted(names, key=_position) for names in groups.values()]
    ordered.sort(key=lambda names: names[0].position)
    return tuple(TensorGroup(tuple(names)) for names in ordered)


def _leaders(tensors: dict[int, Tensor]) -> dict[int, int]:
    """Tensor → the tensor that stands for those that it overlaps with, within one storage.

    Views side by side in one buffer (cuDNN's RNN weights) are not aliases; overlaps are.
    """
    found = {key: memory_span(tensor) for key, tensor in tensors.items()}
    spans = sorted((span[1], span[2], key) for key, span in found.items() if span is not None)
    leader: dict[int, int] = {}
    reach, head = spans[0][1], spans[0][2]
    for start, end, key in spans:
        if start >= reach:
            head = key
        leader[key] = head
        reach = max(reach, end)
    return leader


def _firsts(aliases: tuple[Alias, ...]) -> tuple[Alias, ...]:
    found: dict[int, Alias] = {}
    for alias in aliases:
        found.setdefault(id(alias.tensor), alias)
    return tuple(found.values())


def _position(alias: Alias) -> int:
    return alias.position
