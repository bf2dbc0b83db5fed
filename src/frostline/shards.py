"""Tensors that lie in parts on several ranks: DTensors of FSDP2 and of tensor parallelism.

What looks at content looks at this rank's part, and costs nothing more than for a tensor that is
whole. What has to be the same on every rank (a verdict, a fingerprint that is kept) is a
collective: all ranks of the mesh call it, in the same order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")


def may_exist() -> bool:
    """Whether there can be a DTensor in this process.

    >>> isinstance(may_exist(), bool)
    True
    """
    # Where there is one its module is loaded; loading it takes a second.
    return "torch.distributed.tensor" in sys.modules


def is_dtensor(tensor: Tensor) -> bool:
    """Whether it is a DTensor, also of one rank alone.

    >>> is_dtensor(torch.ones(2))
    False
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor; any other tensor itself.

    >>> ones = torch.ones(2)
    >>> local_part(ones) is ones
    True
    """
    if not is_dtensor(tensor):
        return tensor
    part: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part


def is_spread(tensor: Tensor) -> bool:
    """Whether it is a DTensor of more than one rank.

    >>> is_spread(torch.ones(2))
    False
    """
    return is_dtensor(tensor) and tensor.device_mesh.size() > 1  # type: ignore[attr-defined]


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of a DTensor, on every rank (a collective); any other tensor itself.

    >>> ones = torch.ones(2)
    >>> whole(ones) is ones
    True
    """
    if not is_dtensor(tensor):
        return tensor
    # Shards that FSDP keeps on the CPU are gathered where the mesh's backend can.
    here: Any = tensor.detach().to(tensor.device_mesh.device_type)  # type: ignore[attr-defined]
    found: Tensor = here.full_tensor()
    return found


@torch.no_grad()
def fill(tensor: Tensor, content: Tensor) -> None:
    """Write ``content`` into a tensor in place; of a DTensor, this rank's part of it.

    No communication: every rank has all of ``content``.

    >>> zeros = torch.zeros(2)
    >>> fill(zeros, torch.ones(2))
    >>> zeros
    tensor([1., 1.])
    """
    if not is_dtensor(tensor):
        tensor.copy_(content)
        return
    from torch.distributed.tensor import DTensor, Replicate

    goal: Any = tensor
    mesh = goal.device_mesh
    copies = DTensor.from_local(content.to(mesh.device_type), mesh, [Replicate()] * mesh.ndim)
    part = copies.redistribute(placements=goal.placements).to_local()
    goal.to_local().copy_(part)


class Team:
    """The ranks among which some tensors are spread.

    Args:
        mesh: a ``DeviceMesh``, of any number of dimensions.

    Attributes:
        leads: whether this rank is the first of them: the one that writes files.
    """

    def __init__(self, mesh: Any) -> None:
        self._mesh = mesh
        self.leads = not any(mesh.get_coordinate())

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` holds on any of them; one small collective a dimension of the mesh."""
        seen = torch.tensor(int(flag), device=self._mesh.device_type)
        for dimension in range(self._mesh.ndim):
            group = self._mesh.get_group(dimension)
            torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX, group=group)
        return bool(seen)

    def share(self, value: Value) -> list[Value]:
        """What each of them gives, in the order of the mesh. Any object that can be pickled."""
        found: list[Any] = [value]
        for dimension in reversed(range(self._mesh.ndim)):
            group = self._mesh.get_group(dimension)
            theirs: list[Any] = [None] * self._mesh.size(dimension)
            torch.distributed.all_gather_object(theirs, found, group=group)
            found = [each for part in theirs for each in part]
        return found

    def said_by_leader(self, value: Value) -> Value:
        """What the first of them gives, on all."""
        return self.share(value if self.leads else None)[0]  # type: ignore[return-value]


def team_of(tensors: Iterable[Tensor]) -> Team | None:
    """The ranks among which the tensors are spread; None where all of them are whole here.

    Of several meshes the largest: FSDP2 over tensor parallelism has that of both, and of one.

    >>> team_of([torch.ones(2)]) is None
    True
    """
    meshes: list[Any] = [t.device_mesh for t in tensors if is_spread(t)]  # type: ignore[attr-defined]
    return Team(max(meshes, key=lambda mesh: mesh.size())) if meshes else None


class Place(NamedTuple):
    """Where a parameter hangs.

    Attributes:
        owner: identity of the module.
        key: the parameter's name in it.
    """

    owner: int
    key: str


def sharded_parameters(model: nn.Module) -> dict[Place, nn.Parameter]:
    """The parameters that FSDP2 shards, wherever it has hung gathered ones in their place.

    It does so while a module runs, and leaves the root's there until the backward pass: after a
    forward for evaluation it is the gathered ones that ``named_parameters`` lists, and what is
    set on those is lost.

    >>> sharded_parameters(nn.Linear(1, 1))
    {}
    """
    found: dict[Place, nn.Parameter] = {}
    for group in _groups(model):
        for held in group.fsdp_params:
            info = held._module_info
            owners = zip(info.shared_modules, info.shared_param_names, strict=True)
            for owner, key in ((info.module, info.param_name), *owners):
                found[Place(id(owner), key)] = held.sharded_param
    return found


def present(known: Tensor, found: Tensor | None) -> Tensor | None:
    """What really hangs in a place where ``found`` is found, and ``known`` was before.

    ``known``, if ``found`` is what FSDP2 gathered from it for the time being.

    >>> one, other = torch.ones(1), torch.ones(1)
    >>> present(one, other) is other
    True
    """
    if found is None or found is known or not is_dtensor(known):
        return found
    gathered = not is_dtensor(found) or found.device_mesh != known.device_mesh  # type: ignore[attr-defined]
    return known if gathered else found


def note_trainable(model: nn.Module) -> None:
    """Have FSDP2 look again at what trains, after flags were changed.

    It works out the gradients' dtypes at the first forward, and for a group of which nothing
    trained then it finds none: thawed later, its gradients come in the dtype of the forward.
    """
    for group in _groups(model):
        thawed = any(held.sharded_param.requires_grad for held in group.fsdp_params)
        if thawed and getattr(group, "_orig_dtype", "not run yet") is None:
            group._init_mp_dtypes()


def _groups(model: nn.Module) -> Iterator[Any]:
    """FSDP2's parameter groups; there is no public way to them."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not fsdp.FSDPModule.__subclasses__():  # fully_shard makes the first
        return
    seen: set[int] = set()
    stack = [model]
    while stack:  # nn.Module.modules() recurses, which is quadratic in the depth
        module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        stack.extend(child for child in module._modules.values() if child is not None)
        if isinstance(module, fsdp.FSDPModule):
            state: Any = module._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None)  # one alone before torch 2.12
            yield from groups if groups is not None else filter(None, [state._fsdp_param_group])
