"""Several processes, one decision: ranks see the same numbers, and freeze the same units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from frostline.errors import ScheduleError, TransitionError

Distributed = Literal["ddp", "fsdp2"]
"""How the model is spread over processes."""


class Ranks:
    """What a freezer has to do among other processes; nothing where there is only this one.

    Args:
        kind: how the model is spread, or None.

    Raises:
        ScheduleError: (a ValueError) an unknown kind, or no process group to go by.
    """

    def __init__(self, kind: Distributed | None) -> None:
        if kind not in (None, "ddp", "fsdp2"):
            raise ScheduleError(f"distributed is 'ddp', 'fsdp2' or None, got {kind!r}")
        if kind is not None and not distributed.is_initialized():
            raise ScheduleError(
                f"distributed={kind!r} needs a process group: call"
                " torch.distributed.init_process_group first, or start with torchrun"
            )
        self._kind = kind
        self._options: dict[str, Any] = {}

    @property
    def wraps(self) -> bool:
        """Whether the loop calls a wrapper of the model."""
        return self._kind == "ddp"

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The model without its DDP wrapper, whose devices are kept for the next one."""
        if self._kind != "ddp" or not isinstance(model, DistributedDataParallel):
            return model
        self._options = {"device_ids": model.device_ids}
        inner: nn.Module = model.module
        return inner

    def wrap(self, model: nn.Module) -> nn.Module:
        """What the loop is to call. DDP is made anew: it takes note of what trains only then."""
        if not self.wraps:
            return model
        options = dict(self._options)
        device = next(model.parameters()).device
        if not options and device.type != "cpu":
            options["device_ids"] = [device]
        return DistributedDataParallel(model, **options)

    def align(self, model: nn.Module) -> None:
        """Give all ranks rank 0's buffers, before some of them freeze.

        Each rank's BatchNorm has seen batches of its own, and the next DDP wrapper hands out
        rank 0's statistics: frozen ones would move.
        """
        if self.wraps:
            with torch.no_grad():
                for buffer in model.buffers():
                    distributed.broadcast(buffer, src=0)

    def same(self, value: float | None) -> float | None:
        """Rank 0's value, on all ranks."""
        if self._kind is None:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def same_reading(self, reading: Mapping[str, Any]) -> Mapping[str, Any]:
        """Rank 0's reading of a signal, on all ranks: batches differ from rank to rank."""
        if self._kind is None or any(isinstance(v, torch.Tensor) for v in reading.values()):
            return reading  # tensors are weights, which the ranks have alike
        box = [reading]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def agree(self, train: frozenset[str]) -> None:
        """Raise TransitionError if another rank is about to train other units."""
        if self._kind is None:
            return
        mine = sorted(train)
        theirs: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(theirs, mine)
        for rank, other in enumerate(theirs):
            if other != mine:
                differ = sorted(set(mine) ^ set(other))[:4]
                raise TransitionError(
                    f"rank {distributed.get_rank()} and rank {rank} would train different parts"
                    f" ({', '.join(differ)}): give all ranks the same schedule and seed, and call"
                    " the freezer in all of them alike"
                )
