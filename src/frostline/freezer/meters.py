"""Signals that are read off gradients and weights, unit by unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from frostline.freezer.scene import Scene


class Meter(Protocol):
    """Takes one signal. It is armed before a step, looks on during it, and is read after it."""

    def arm(self, scene: Scene) -> None:
        """Get ready for the step that comes."""
        ...

    def look(self, scene: Scene) -> None:
        """The optimizer is about to write: gradients are complete, weights as the forward had."""
        ...

    def read(self, scene: Scene) -> Mapping[str, Any]:
        """Unit → value, after the step."""
        ...

    def restart(self) -> None:
        """Begin anew."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as tensors, numbers, strings, lists and dicts."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        ...


class GradientNorms:
    """The 2-norm of each unit's gradient in the last step, or its ratio to the weights' norm."""

    def __init__(self, *, relative: bool = False) -> None:
        self._relative = relative
        self._norms: dict[str, Tensor] = {}

    def arm(self, scene: Scene) -> None:
        """Nothing to prepare."""

    def look(self, scene: Scene) -> None:
        """Take the norms; they stay on the device until somebody reads them."""
        self._norms = {}
        for unit, named in scene.units.items():
            gradients = [_whole(p.grad) for p in named.values() if p.grad is not None]
            if not gradients:
                continue
            norm = _norm(gradients)
            if self._relative:
                norm = norm / _norm([_whole(p.detach()) for p in named.values()])
            self._norms[unit] = norm

    def read(self, scene: Scene) -> Mapping[str, float]:
        """Unit → norm; units without a gradient, or with a ratio to nothing, are left out."""
        values = {unit: float(norm) for unit, norm in self._norms.items()}
        if self._relative:
            return {unit: v for unit, v in values.items() if v < float("inf")}
        return values

    def restart(self) -> None:
        """Forget the last step."""
        self._norms = {}

    def state(self) -> dict[str, Any]:
        """Nothing: every step is taken by itself."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Nothing to go on from."""
        self._norms = {}


class AccumulatedGradients:
    """Each unit's gradients, summed over the steps since the restart; read as absolute sums."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def arm(self, scene: Scene) -> None:
        """Forget what froze since: it will not be asked for."""
        wanted = {name for named in scene.units.values() for name in named}
        self._sums = {name: total for name, total in self._sums.items() if name in wanted}

    def look(self, scene: Scene) -> None:
        """Add this step's gradients."""
        for named in scene.units.values():
            for name, parameter in named.items():
                if parameter.grad is None:
                    continue
                gradient = parameter.grad.detach()
                if name in self._sums:
                    self._sums[name].add_(gradient)
                else:
                    self._sums[name] = gradient.clone()

    def read(self, scene: Scene) -> Mapping[str, float]:
        """Unit → sum over its parameters of the 1-norm of the summed gradient."""
        found = {}
        for unit, named in scene.units.items():
            totals = [_whole(self._sums[name]) for name in named if name in self._sums]
            if totals:
                found[unit] = float(
                    torch.stack([total.abs().sum().float() for total in totals]).sum()
                )
        return found

    def restart(self) -> None:
        """From zero."""
        self._sums = {}

    def state(self) -> dict[str, Any]:
        """The sums by parameter name."""
        return {"sums": dict(self._sums)}

    def load(self, state: Mapping[str, Any]) -> None:
        """The sums as they were."""
        self._sums = {name: total.clone() for name, total in state["sums"].items()}


class WeightChange:
    """How far each unit's weights have gone since the restart, element by element."""

    def __init__(self) -> None:
        self._base: dict[str, Tensor] = {}

    def arm(self, scene: Scene) -> None:
        """Note the weights of what has none noted yet; forget what froze."""
        self._base = {
            name: self._base[name] if name in self._base else parameter.detach().clone()
            for named in scene.units.values()
            for name, parameter in named.items()
        }

    def look(self, scene: Scene) -> None:
        """Nothing: the difference is taken when it is asked for."""

    def read(self, scene: Scene) -> Mapping[str, Tensor]:
        """Unit → the change, one flat tensor over its parameters."""
        return {
            unit: torch.cat(
                [(p.detach() - self._base[name]).reshape(-1) for name, p in named.items()]
            )
            for unit, named in scene.units.items()
            if all(name in self._base for name in named)
        }

    def restart(self) -> None:
        """From the present, as soon as the next step is prepared."""
        self._base = {}

    def state(self) -> dict[str, Any]:
        """The noted weights by name."""
        return {"base": dict(self._base)}

    def load(self, state: Mapping[str, Any]) -> None:
        """The noted weights as they were."""
        self._base = {name: tensor.clone() for name, tensor in state["base"].items()}


def _norm(tensors: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(tensor.float()) for tensor in tensors]
    whole: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return whole


def _whole(tensor: Tensor) -> Tensor:
    """A sharded tensor as one; every rank has to ask for it."""
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
