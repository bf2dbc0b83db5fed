"""Replay of a model that is sharded by ``fully_shard`` (FSDP2): its ranks decide together.

A block that is computed is gathered, and a rank that gathers waits for all others to do so. So
whether a pass is replayed is the same on all ranks: one small number is reduced for each pass.
Trial passes, of which each rank may need other ones, are made while all blocks are gathered: then
no pass talks to anybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import distributed, nn

from frostline.naming import walk_modules
from frostline.proof import fingerprint
from frostline.replay.content import chained, digest_of, sample_digests
from frostline.replay.kinds import Kind
from frostline.replay.runner import TopLevel
from frostline.replay.sharded_blocks import (
    blocks_of,
    come_to_rest,
    digests_over_ranks,
    groups_of,
    over_ranks,
)
from frostline.shards import Place, sharded_parameters


class Way(IntEnum):
    """How a pass is made; what any rank needs all do, and the larger number wins.

    Attributes:
        REPLAY: frozen calls are left out; nothing else can happen on the way.
        COMPUTE: all is computed, once, and may be recorded.
        FREELY: whatever each rank needs, trial passes too, with all blocks gathered.

    >>> max(Way.COMPUTE, Way.FREELY).name
    'FREELY'
    """

    REPLAY = 0
    COMPUTE = 1
    FREELY = 2


class InStep:
    """The ranks over which one model is sharded.

    Args:
        model: sharded by ``fully_shard``.

    >>> import torch.distributed as dist
    >>> from torch.distributed.device_mesh import init_device_mesh
    >>> from torch.distributed.fsdp import fully_shard
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> layer = fully_shard(nn.Linear(2, 2), mesh=init_device_mesh("cpu", (1,)))
    >>> steps = InStep(layer)
    >>> steps.agree(Way.COMPUTE).name, steps.share_digests()
    ('COMPUTE', None)
    >>> dist.destroy_process_group()
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._group = _group_over(model)
        self._contents: WeakKeyDictionary[Kind, dict[int, bytes]] = WeakKeyDictionary()

    def agree(self, wanted: Way) -> Way:
        """The way on which all ranks go."""
        word = torch.tensor(int(wanted), device=_device_of(self._group))
        distributed.all_reduce(word, distributed.ReduceOp.MAX, group=self._group)
        return Way(int(word))

    # What a rank knows beforehand.

    def note(self, kind: Kind, call: TopLevel, ids: tuple[int, ...]) -> None:
        """These samples have been recorded with what they bring into this call."""
        known = self._contents.setdefault(kind, {})
        for name, content in zip(ids, _contents(call, ids), strict=True):
            known.setdefault(name, content)

    def brings_what_was_recorded(self, kind: Kind, call: TopLevel, ids: tuple[int, ...]) -> bool:
        """Whether these samples bring what they brought when they were recorded."""
        known = self._contents.get(kind, {})
        if not all(name in known for name in ids):
            return False
        return [known[name] for name in ids] == _contents(call, ids)

    # Weights.

    def share_digests(self) -> str | None:
        """Give each frozen shard a digest of what all ranks hold of it.

        Returns:
            The name of a tensor that has been frozen, and is another one now on some rank.
        """
        shards = sharded_parameters(self._model)
        frozen = {
            f"{name}.{key}" if name else key: shards[Place(id(module), key)]
            for name, module in walk_modules(self._model)
            for key in module._parameters
            if Place(id(module), key) in shards and not shards[Place(id(module), key)].requires_grad
        }
        mine = {name: fingerprint(parameter) for name, parameter in frozen.items()}
        everyone: list[Any] = [None] * distributed.get_world_size(self._group)
        distributed.all_gather_object(everyone, mine, group=self._group)
        policies = [repr(block._get_fsdp_state()._mp_policy) for block in blocks_of(self._model)]
        now = {
            name: digest_of(policies, [theirs.get(name) for theirs in everyone]).hex()
            for name in frozen
        }
        before = {name: over_ranks(parameter, now[name]) for name, parameter in frozen.items()}
        for parameter in shards.values():
            digests_over_ranks.pop(parameter, None)  # what trains is another one when it freezes
        for name, parameter in frozen.items():
            digests_over_ranks[parameter] = now[name]
        return next((name for name in frozen if before[name] != now[name]), None)

    # Collectives.

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Hold all blocks gathered while this is open, on all ranks; then they are sharded."""
        blocks = blocks_of(self._model, below=True)
        groups = [group for block in blocks for group in groups_of(block)]
        mesh_infos = [group.post_forward_mesh_info for group in groups]
        orders = {id(group.comm_ctx): group.comm_ctx.post_forward_order for group in groups}
        before = {key: list(order) for key, order in orders.items()}
        for group in groups:
            group.post_forward_mesh_info = None  # or its forward would shard it again
        for block in blocks:
            block.unshard()
        try:
            yield
        finally:
            for group, info in zip(groups, mesh_infos, strict=True):
                group.post_forward_mesh_info = info
            come_to_rest(self._model)
            for block in blocks:
                block.reshard()
            for key, order in orders.items():
                _settle(order, before[key], groups)


def _settle(order: list[Any], before: list[Any], groups: list[Any]) -> None:
    """Have backward fetch ahead the same on all ranks, whatever trial passes each has made.

    FSDP2 notes in which order groups ran, and fetches the one before ahead of time. What remains
    noted of this pass is each group that trains, once.
    """
    ran = {id(group) for group in order[len(before) :]}
    for group in {id(group): group for group in order}.values():
        group._post_forward_indices.clear()
    order[:] = [*before, *(group for group in groups if id(group) in ran and _trains(group))]
    for index, group in enumerate(order):
        group._post_forward_indices.append(index)


def _trains(group: Any) -> bool:
    return any(held.sharded_param.requires_grad for held in group.fsdp_params)


def _contents(call: TopLevel, ids: tuple[int, ...]) -> list[bytes]:
    """For each sample a digest of all tensors that come into a call."""
    columns = [sample_digests(tensor, len(ids)) for tensor in call.given.tensors]
    return chained([b"%d;" % name for name in ids], columns)


def _group_over(model: nn.Module) -> Any:
    """A group of their own, on the CPU where gloo is to be had: no device is waited for."""
    meshes = [p.device_mesh for p in sharded_parameters(model).values()]  # type: ignore[attr-defined]
    mesh = max(meshes, key=lambda mesh: mesh.size())
    world: Any = distributed.group.WORLD
    return distributed.new_group(
        sorted(mesh.mesh.flatten().tolist()),
        backend="gloo" if distributed.is_gloo_available() else None,
        timeout=_timeout_of(world),
        use_local_synchronization=True,
    )


def _timeout_of(group: Any) -> timedelta | None:
    for kind in ("cpu", "cuda"):
        try:
            found: timedelta = group._get_backend(torch.device(kind)).options._timeout
        except (AttributeError, RuntimeError):  # no backend for this device, or without options
            continue
        return found
    return None


def _device_of(group: Any) -> torch.device:
    if distributed.get_backend(group) == "gloo":
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator() or "cpu")
