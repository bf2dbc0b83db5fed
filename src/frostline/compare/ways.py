"""Five ways to train with a part of a network frozen, side by side on the same batches.

The first three are written out as tutorials write them, faults included; the last two are
Frostline's: the fourth, and the fourth with replay.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import frostline as fl
from frostline.compare.comparison import WAYS, Comparison, Replayed, Way, WayResult
from frostline.errors import ConfigError, FrostlineError, OptimizerError
from frostline.finetune.threads import threads
from frostline.measure import (
    StepTime,
    gradient_bytes,
    optimizer_state_bytes,
    predict,
    saved_activations,
    step_times,
)
from frostline.naming import take_inventory
from frostline.nests import tensors_in
from frostline.proof.fingerprint import as_bytes
from frostline.selection import SelectorLike

Batch = TypeVar("Batch")

_ROUNDS_OF_RECORDING = 3
"""Times that best and replay go through all batches before they are timed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Experiment(Generic[Batch]):
    """What the four ways have in common.

    Attributes:
        model: the network before training; it is copied, never changed.
        batches: what to train on, in turn.
        loss: forward pass of a model on a batch; gives a scalar.
        freeze: what to freeze.
        optimizer: class of the optimizer, which must step without a closure.
        options: its keyword arguments.
        steps: training steps after which the tensors are compared.
        repeats: further steps that are timed.
        patience_seconds: about how long the timing may take; slow steps are timed less often.
        seed: what dropout draws from; the same for each way.
        threads: threads that torch may compute with meanwhile; None leaves it as it is.
    """

    model: nn.Module
    batches: Sequence[Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    freeze: SelectorLike
    optimizer: type[Optimizer] = torch.optim.SGD
    options: Mapping[str, Any] = field(default_factory=lambda: {"lr": 1e-2})
    steps: int = 10
    repeats: int = 100
    patience_seconds: float = 10.0
    seed: int = 0
    threads: int | None = None


def compare_ways(experiment: Experiment[Batch]) -> Comparison:
    """Run the five ways on copies of one model, and measure each.

    Replay is timed when all batches have been recorded and checked, as in later epochs. The
    model, the batches and the CPU's random state are left as they were.

    Raises:
        SelectorError: what to freeze matches nothing.
        PlanError: nothing would be left to train.
        OptimizerError: the optimizer refuses its options or the parameters.
        ConfigError: the loss or a weight became infinite or NaN.

    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 10))
    >>> found = compare_ways(Experiment(
    ...     model=net,
    ...     batches=[torch.ones(3, 8)],
    ...     loss=lambda model, x: model(x).square().mean(),
    ...     freeze="0",
    ...     repeats=3,
    ... ))
    >>> found["grad"].changed["0.weight"], found["grad"].gradient_bytes
    (0.0, 200)
    """
    frozen = fl.freeze(copy.deepcopy(experiment.model), experiment.freeze)
    with torch.random.fork_rng(devices=[]), threads(experiment.threads):
        runs = [_Run(way, experiment) for way in WAYS]
        changes = [run.train() for run in runs]
        is_same = _go_on(*(run for run in runs if run.way in ("best", "replay")))
        times = step_times(
            {run.way: run.step for run in runs},
            repeats=experiment.repeats,
            patience_seconds=experiment.patience_seconds,
        )
        results = tuple(
            run.result(changed, times[run.way], is_same=is_same)
            for run, changed in zip(runs, changes, strict=True)
        )
        late_state_bytes = _late_state_bytes(experiment)
    return Comparison(
        ways=results,
        frozen=frozen.names,
        frozen_buffers=frozen.buffers,
        trained=tuple(name for name in results[0].requires_grad if name not in frozen.names),
        late_state_bytes=late_state_bytes,
        steps=experiment.steps,
    )


class _Run(Generic[Batch]):
    """One way, in training."""

    def __init__(self, way: Way, experiment: Experiment[Batch]) -> None:
        self.way: Way = way
        self.experiment = experiment
        self.model = copy.deepcopy(experiment.model).train()
        _freeze(way, self.model, experiment)
        self.optimizer = self.make_optimizer(self.model)
        self.batches = itertools.cycle(enumerate(experiment.batches))
        self.replayer = fl.Replayer(self.model) if way == "replay" else None
        sizes = [_number_of_samples(batch) for batch in experiment.batches]
        ends = list(itertools.accumulate(sizes))
        self.samples = [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        return _make_optimizer(self.way, model, self.experiment)

    def step(self) -> Tensor:
        """One step, as every tutorial writes it."""
        self.optimizer.zero_grad()
        loss = self.loss(*next(self.batches))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss

    def loss(self, number: int, batch: Batch) -> Tensor:
        """The forward pass on one of the batches."""
        if self.replayer is None:
            return self.experiment.loss(self.model, batch)
        with self.replayer.samples(self.samples[number]):
            return self.experiment.loss(self.model, batch)

    def train(self) -> dict[str, float]:
        """Take all steps; name → largest absolute change."""
        torch.manual_seed(self.experiment.seed)
        losses = [float(self.step().detach()) for _ in range(self.experiment.steps)]
        before = _tensors(self.experiment.model)
        changed = {
            name: _greatest_change(before[name], now) for name, now in _tensors(self.model).items()
        }
        if not all(map(math.isfinite, [*losses, *changed.values()])):
            raise ConfigError(
                f"training diverged within {len(losses)} steps: the loss went from {losses[0]:.3g}"
                f" to {losses[-1]:.3g}; try a lower learning rate"
            )
        return changed

    def result(
        self, changed: Mapping[str, float], step_time: StepTime, *, is_same: bool
    ) -> WayResult:
        """What is held right after a step, beside what was found before."""
        held, state = gradient_bytes(self.model), optimizer_state_bytes(self.optimizer)
        self.optimizer.zero_grad()
        batch = self.experiment.batches[0]
        tensors = _tensors(self.model)
        return WayResult(
            way=self.way,
            changed=changed,
            requires_grad={
                name: tensor.requires_grad
                for name, tensor in tensors.items()
                if isinstance(tensor, nn.Parameter)
            },
            gradient_bytes=held,
            leftover_gradient_bytes=gradient_bytes(self.model),
            optimizer_state_bytes=state,
            activation_bytes=saved_activations(
                self.model, lambda: self.loss(0, batch)
            ).activation_bytes,
            step_time=step_time,
            predicted=predict(
                self.model, batch, self.experiment.loss, optimizer=self.make_optimizer
            ),
            replayed=None if self.replayer is None else _replayed(self.replayer, is_same),
        )


def _freeze(way: Way, model: nn.Module, experiment: Experiment[Batch]) -> None:
    if way == "grad":
        for parameter in fl.select(model, experiment.freeze).parameters:
            parameter.requires_grad = False
    elif way in ("best", "replay"):
        fl.freeze(model, experiment.freeze)


def _make_optimizer(way: Way, model: nn.Module, experiment: Experiment[Batch]) -> Optimizer:
    given = list(model.parameters())
    if way == "optimizer":
        # By identity: == on tensors compares their elements.
        left_out = set(map(id, fl.select(model, experiment.freeze).parameters))
        given = [parameter for parameter in given if id(parameter) not in left_out]
    build = experiment.optimizer
    try:
        if way in ("best", "replay"):
            return fl.optimizer(build, model, **experiment.options)
        return build(given, **experiment.options)
    except FrostlineError:
        raise
    except (TypeError, ValueError) as error:
        raise OptimizerError(f"{build.__name__} can't be used here: {error}") from error


def _number_of_samples(batch: object) -> int:
    first = next(tensors_in(batch), None)
    return len(first) if first is not None and first.ndim else 1


def _go_on(*runs: _Run[Batch]) -> bool:
    """Train on for some rounds, each run alike; whether all then hold the same bits.

    In the first round replay records, in the second it checks itself, in the third it replays.
    """
    after = []
    for run in runs:
        torch.manual_seed(run.experiment.seed)
        for _ in range(_ROUNDS_OF_RECORDING * len(run.experiment.batches)):
            run.step()
        after.append(_tensors(run.model))
    return all(
        torch.equal(as_bytes(tensor), as_bytes(other[name]))
        for other in after[1:]
        for name, tensor in after[0].items()
    )


def _replayed(replayer: fl.Replayer, is_same: bool) -> Replayed:
    stats = replayer.stats
    why_not = None if stats.replayed else replayer.declined or "no batch came as it was recorded"
    return Replayed(
        kept_bytes=stats.bytes, batches=stats.replayed, is_same=is_same, why_not=why_not
    )


def _late_state_bytes(experiment: Experiment[Batch]) -> int:
    """Way ``grad`` with one step before the freeze, which allocates state for everything."""
    run = _Run("none", experiment)
    run.step()
    run.optimizer.zero_grad()
    _freeze("grad", run.model, experiment)
    run.step()
    return optimizer_state_bytes(run.optimizer)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Canonical name → every parameter and buffer once, in definition order."""
    inventory = take_inventory(model)
    aliases = [*inventory.buffers, *(a for group in inventory.groups for a in group.aliases)]
    first = {id(a.tensor): a for a in sorted(aliases, key=lambda a: a.position, reverse=True)}
    return {a.name: a.tensor for a in sorted(first.values(), key=lambda a: a.position)}


def _greatest_change(before: Tensor, now: Tensor) -> float:
    """0.0 if every bit is the same; else the largest absolute difference, which is above 0."""
    if torch.equal(as_bytes(before), as_bytes(now)):
        return 0.0
    wide = torch.complex128 if before.is_complex() else torch.float64
    difference = float((now.detach().to(wide) - before.detach().to(wide)).abs().max())
    # Only the sign of a zero may have flipped; that must not read as unchanged.
    return difference or math.ulp(0.0)
