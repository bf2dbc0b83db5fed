"""A run's optimizers, however many, kept in step with what a freezer does.

The freezer is given an optimizer that holds everything and moves nothing. It is "stepped" when
Lightning says that gradients are there: Lightning runs forward and backward inside of the real
``optimizer.step(closure)``, so hooks of the real one come too early to see any. After each
transition every real optimizer lets go of what froze and takes back what was its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from frostline.freezer.rates import RateFactors
from frostline.naming import take_inventory
from frostline.optim import sync
from frostline.proof.trial import moves_without_gradient
from frostline.schedules import Layout


class Steering(Optimizer):
    """Stands for all optimizers of a run where one is wanted; its step does nothing.

    >>> model = nn.Linear(2, 1)
    >>> Steering(model.parameters()).step()
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Nothing moves; whoever listens to steps is told."""


class Optimizers:
    """The optimizers that train one model.

    Args:
        model: the model, whose parameters they hold, each its own.
        real: the optimizers, as they were built.
        known: for each the names that it held in an earlier run of the model.

    Attributes:
        steering: what a freezer is given for all of them.
        owned: for each, the names of the parameters that are its own.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> pair = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model]
    >>> optimizers = Optimizers(model, pair)
    >>> _ = model[0].requires_grad_(False)
    >>> optimizers.sync()
    >>> [len(optimizer.param_groups[0]["params"]) for optimizer in pair]
    [0, 2]
    """

    def __init__(
        self, model: nn.Module, real: Sequence[Optimizer], known: Sequence[Iterable[str]] = ()
    ) -> None:
        self._model = model
        self._real = tuple(real)
        names = {id(parameter): name for name, parameter in _named(model).items()}
        self.owned: list[set[str]] = [
            {names[id(p)] for group in o.param_groups for p in group["params"] if id(p) in names}
            for o in real
        ]
        if len(known) == len(self.owned):
            for mine, earlier in zip(self.owned, known, strict=True):
                mine.update(earlier)
        self.steering = Steering(model.parameters())
        self._follow()
        self._moments: Literal["fresh", "keep"] = "fresh"
        self._rates: list[RateFactors] = []

    def scale(self, layout: Layout) -> None:
        """Let :meth:`set_rates` scale learning rates by unit.

        Raises:
            ScheduleError: (a ValueError) an optimizer has one rate for everything.
        """
        units = {name: unit.name for unit in layout.units for name in unit.parameters}
        named = _named(self._model)
        for optimizer in self._real:
            rates = RateFactors(optimizer)
            rates.install()
            rates.units = {id(named[name]): unit for name, unit in units.items()}
            self._rates.append(rates)

    def set_rates(self, factors: Mapping[str, float]) -> None:
        """Unit → factor on its learning rate, from the next step on."""
        for rates in self._rates:
            rates.factors = dict(factors)

    def keep_moments(self) -> None:
        """From now on frozen parameters keep their optimizer state, where that is possible."""
        if not any(moves_without_gradient(type(o), o.defaults) for o in self._real):
            self._moments = "keep"

    def note_step(self) -> None:
        """Gradients are there, and one of the optimizers is about to use them."""
        self._follow()
        self.steering.step()

    def sync(self) -> None:
        """Make each optimizer hold what trains of its own, and nothing else.

        Raises:
            OptimizerError: (a ValueError) one of them can't hold what has thawed.
        """
        for optimizer, names in zip(self._real, self.owned, strict=True):
            # With one alone, what trains and is nobody's is its own; with several that can't be
            # told, and the guard names it.
            part = self._model if len(self._real) == 1 else _part(self._model, names)
            sync(part, optimizer, state=self._moments, gradients="drop")

    def close(self) -> None:
        """Take all hooks away."""
        for rates in self._rates:
            rates.remove()
        self._rates = []

    def _follow(self) -> None:
        first, group = self._real[0].param_groups[0], self.steering.param_groups[0]
        group.update({key: first[key] for key in ("lr", "initial_lr") if key in first})


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    groups = take_inventory(model).groups
    return {name: parameter for group in groups for name, parameter in group.named.items()}


def _part(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Some parameters of a model under the names that they have in it."""
    part, wanted = nn.Module(), set(names)
    for name, parameter in _named(model).items():
        if name in wanted:
            path, _, leaf = name.rpartition(".")
            _reach(part, path).register_parameter(leaf, parameter)
    return part


def _reach(module: nn.Module, path: str) -> nn.Module:
    held: dict[str, Any] = module._modules
    for piece in filter(None, path.split(".")):
        module = held.setdefault(piece, nn.Module())
        held = module._modules
    return module
