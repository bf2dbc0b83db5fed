"""Several processes, one decision: ranks see the same numbers, and freeze the same units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from frostline.distributed import Agreement, Parallel, agreement_among, live_wrappers
from frostline.errors import ScheduleError
from frostline.freezing.modes import pin_of

Distributed = Literal["ddp", "fsdp2"]
"""How the model is spread over processes."""


class Ranks:
    """What a freezer has to do among other processes; nothing where there is only this one.

    Args:
        kind: how the model is spread; None: as it shows, by a DistributedDataParallel that holds
            it, or by its sharded parameters.
        model: what the freezer was given.

    Attributes:
        model: what the loop calls: what was given, or the wrapper that it got.
        module: the model without its wrapper.

    Raises:
        ScheduleError: (a ValueError) an unknown kind, or no process group to go by.
    """

    def __init__(self, kind: Distributed | None, model: nn.Module) -> None:
        if kind not in (None, "ddp", "fsdp2"):
            raise ScheduleError(f"distributed is 'ddp', 'fsdp2' or None, got {kind!r}")
        together = distributed.is_available() and distributed.is_initialized()
        if kind is not None and not together:
            raise ScheduleError(
                f"distributed={kind!r} needs a process group: call"
                " torch.distributed.init_process_group first, or start with torchrun"
            )
        self.model = model
        self._kind = kind
        self._parallels: list[Parallel] = []
        self._agreement: Agreement | None = None
        if kind == "ddp" and not live_wrappers(model):
            self.model = _wrapped(model)
        self.module: nn.Module = (
            self.model.module if isinstance(self.model, DistributedDataParallel) else model
        )
        if together:
            self.look()

    def look(self) -> None:
        """See how the model is spread, unless that is known: it may have been wrapped since."""
        if self._agreement is not None or not distributed.is_initialized():
            return
        wrappers = live_wrappers(self.module) if self._kind != "fsdp2" else []
        # The one that the loop calls comes first; others are left over, and follow all the same.
        wrappers.sort(key=lambda wrapper: wrapper is not self.model)
        self._parallels = [Parallel(wrapper) for wrapper in wrappers]
        if wrappers and wrappers[0].module is self.model:
            self.model = wrappers[0]
        if wrappers or self._kind is not None or _is_sharded(self.module):
            self._agreement = agreement_among(self._members())

    def agree(
        self,
        moment: str,
        facts: Callable[[], Mapping[str, object]],
        check: Callable[[], object] = lambda: None,
    ) -> None:
        """Go on if all ranks are about to do the same, and ``check`` refuses on none of them.

        Args:
            moment: what is about to happen.
            facts: gives what has to be the same, by name.
            check: what may refuse.

        Raises:
            TransitionError: the ranks are at odds, or not all came here; the same on all ranks.
            FrostlineError: what ``check`` raised.
        """
        if self._agreement is None:
            check()
        else:
            self._agreement.reach(moment, facts(), check=check)

    def same(
        self,
        moment: str,
        facts: Mapping[str, object],
        value: float | None,
        check: Callable[[float | None], object],
    ) -> float | None:
        """Rank 0's value on all ranks, once ``check`` has nothing against it."""
        if self._agreement is not None:
            number = math.nan if value is None else value
            there, number = self._agreement.reach(
                moment, facts, numbers=(value is not None, number)
            )
            value = number if there else None
        check(value)
        return value

    def same_reading(self, reading: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
        """Rank 0's reading of a signal, on all ranks: batches differ from rank to rank.

        Args:
            reading: unit → value, as this rank has it.
            names: the units that it may be about.
        """
        if self._agreement is None or any(isinstance(v, torch.Tensor) for v in reading.values()):
            return reading  # tensors are weights, which the ranks have alike
        rows = [(name in reading, float(reading.get(name, 0.0))) for name in names]
        told = self._agreement.reach(
            "a look at a signal",
            {"the units": list(names)},
            numbers=[number for row in rows for number in row],
        )
        pairs = zip(names, told[::2], told[1::2], strict=True)
        return {name: value for name, there, value in pairs if there}

    def align(self) -> None:
        """Give all ranks rank 0's buffers, before some of them freeze."""
        for parallel in self._parallels[:1]:
            parallel.align()

    @contextmanager
    def transition(self) -> Iterator[None]:
        """Freeze and thaw inside; afterwards gradients are reduced of exactly what trains."""
        with ExitStack() as stack:
            for parallel in self._parallels:
                stack.enter_context(parallel.transition())
            yield

    def rest(self) -> None:
        """Frozen statistics stay out of the wrapper's broadcasts: all ranks have them alike."""
        if self._parallels:
            pins = ((module, pin_of(module)) for module in self.module.modules())
            self._leave_out(
                buffer
                for module, pin in pins
                if pin is not None and pin.wish.held_buffers
                for buffer in module._buffers.values()
                if buffer is not None
            )

    def close(self) -> None:
        """Take part no more; the wrapper broadcasts all buffers again."""
        self._leave_out(())
        self._agreement, self._parallels = None, []

    def _leave_out(self, resting: Iterable[torch.Tensor]) -> None:
        buffers = list(resting)
        for parallel in self._parallels:
            parallel.leave_out(buffers)

    def _members(self) -> list[int] | None:
        """The ranks that hold the model too; None: all of them."""
        if not self._parallels:
            return None
        ranks = distributed.get_process_group_ranks(self._parallels[0].wrapper.process_group)
        return None if len(ranks) == distributed.get_world_size() else ranks


def _wrapped(model: nn.Module) -> DistributedDataParallel:
    """The model under a wrapper, which is built before the first decision and follows it."""
    parameters = list(model.parameters())
    device = parameters[0].device
    devices: Any = None if device.type == "cpu" else [device]
    if any(parameter.requires_grad for parameter in parameters):
        return DistributedDataParallel(model, device_ids=devices)
    # All frozen by hand, for the schedule to thaw: torch wraps only what has something to reduce.
    lent = next(parameter for parameter in parameters if parameter.is_floating_point())
    lent.requires_grad_(True)
    try:
        return DistributedDataParallel(model, device_ids=devices)
    finally:
        lent.requires_grad_(False)


def _is_sharded(model: nn.Module) -> bool:
    """Whether a parameter is a DTensor, as ``fully_shard`` leaves them."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
