"""Where a job computes and with whom: device, precision and processes, by Accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from frostline.distributed import Parallel
from frostline.errors import ConfigError
from frostline.finetune.sources.extras import require

Thing = TypeVar("Thing")


class MainFailedError(ConfigError):
    """Raised in the other processes where the main one failed, which tells the user why.

    >>> str(MainFailedError("no space left"))
    'in the main process: no space left'
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"in the main process: {reason}")


class Engine:
    """The machine as the loop sees it: this process's device, and the other processes.

    One process is one rank. Started by ``torchrun`` or ``accelerate launch`` there are several, of
    which the one that ``is_main`` speaks and writes.

    Args:
        mixed_precision: ``no``, ``bf16`` or ``fp16``.

    Attributes:
        device: where the model and the batches are.
        rank: number of this process, from 0.
        ranks: how many there are.

    Raises:
        ConfigError: Accelerate is not installed, or the device can't compute so.

    >>> engine = Engine()
    >>> engine.ranks, engine.is_main, engine.shared("all ranks have it")
    (1, True, 'all ranks have it')
    """

    def __init__(self, mixed_precision: str = "no") -> None:
        self._accelerator = _accelerator(mixed_precision)
        self._send = _part("accelerate.utils").send_to_device
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.ranks: int = self._accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    # One step.

    def autocast(self) -> AbstractContextManager[Any]:
        """In it the forward pass computes in the precision that was asked for."""
        return self._accelerator.autocast()  # type: ignore[no-any-return]

    def to_device(self, batch: Thing) -> Thing:
        """A batch with its tensors on the device."""
        moved: Thing = self._send(batch, self.device)
        return moved

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, scaled where the precision needs it."""
        self._accelerator.backward(loss)

    def stepping(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer, such that its step takes back what :meth:`backward` scaled."""
        stepping: Optimizer = self._accelerator.prepare_optimizer(optimizer)
        return stepping

    # The model among other ranks.

    def spread(self, model: nn.Module) -> nn.Module:
        """What the loop is to call, so that gradients are averaged over the ranks."""
        if self.ranks == 1 or isinstance(model, DistributedDataParallel):
            return model
        spread: nn.Module = self._accelerator.prepare_model(model)
        return spread

    def quiet(self, model: nn.Module, *, when: bool) -> AbstractContextManager[Any]:
        """In it gradients stay on their rank: before the last batch of a step."""
        return self._accelerator.no_sync(model) if when else nullcontext()

    def align(self, model: nn.Module) -> None:
        """Give all processes the main one's buffers: BatchNorm's, of the batches each has seen.

        Args:
            model: what :meth:`spread` gave, or a freezer's wrapper.
        """
        if isinstance(model, DistributedDataParallel):
            Parallel(model).align()

    # Ranks in agreement; each call is made by all of them, or by none.

    def shared(self, value: Thing) -> Thing:
        """The main process's value, in all of them."""
        if self.ranks == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Thing) -> list[Thing]:
        """The values of all processes, by rank."""
        if self.ranks == 1:
            return [value]
        values: list[Any] = [None] * self.ranks
        torch.distributed.all_gather_object(values, value)
        return values

    def by_main(self, act: Callable[[], Thing]) -> Thing:
        """What the main process gets by doing something; if it fails there it fails in all."""
        if self.ranks == 1:
            return act()
        outcome: tuple[Thing | None, str | None] = (None, None)
        if self.is_main:
            try:
                outcome = (act(), None)
            except Exception as error:
                self.shared((None, str(error)))
                raise
        value, failure = self.shared(outcome)
        if failure is not None:
            raise MainFailedError(failure)
        return cast(Thing, value)

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over the processes."""
        if self.ranks == 1:
            return list(numbers)
        return [sum(column) for column in zip(*self.gathered(tuple(numbers)), strict=True)]

    def any(self, value: bool) -> bool:
        """Whether it holds in any process; cheap enough for every step."""
        if self.ranks == 1:
            return value
        flag = torch.tensor(int(value), device=self.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs this before the others do, so that they find what it has cached.

        Raises:
            MainFailedError: in the others, if it failed there.
        """
        if not self.is_main and (failure := self.shared(None)) is not None:
            raise MainFailedError(failure)
        try:
            yield
        except Exception as error:
            if self.is_main:
                self.shared(str(error))
            raise
        if self.is_main:
            self.shared(None)

    # What a checkpoint holds of it.

    def state_dict(self) -> dict[str, Any]:
        """The gradient scaler's state; empty where nothing is scaled."""
        scaler = self._accelerator.scaler
        return scaler.state_dict() if scaler is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the scale of a run that was cut short."""
        if state and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)


def _accelerator(mixed_precision: str) -> Any:
    accelerate, state = (_part(name) for name in ("accelerate", "accelerate.state"))
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError(
            "mixed_precision: fp16 needs a GPU, and there is none here; take bf16, or no"
        )
    # Its state is one for the process, and refuses another precision than the first job's.
    state.AcceleratorState._reset_state()
    # Without being told, Accelerate takes processes on machines without a GPU for unrelated ones.
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    try:
        return accelerate.Accelerator(mixed_precision=mixed_precision, cpu=on_cpu)
    except ValueError as error:  # such as bf16 on a GPU that has none
        raise ConfigError(f"mixed_precision: {mixed_precision}: {error}") from error


def _part(name: str) -> Any:
    install = "'frostline[hf]' (or 'frostline[demo]' for the default job)"
    return require(name, reason="the training loop", install=install)
