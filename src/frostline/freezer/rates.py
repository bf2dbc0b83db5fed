"""Learning-rate factors by unit, on top of whatever a scheduler does.

Between steps the optimizer's groups are as its builder and its scheduler know them. Only while
``optimizer.step()`` runs they are cut by unit, each piece with its factor on the rate. So a
scheduler never reads a rate that a factor is in, and no factor is ever applied twice.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from frostline.errors import ScheduleError

_OWN = frozenset({"params", "param_names", "lr"})


class RateFactors:
    """Scales the rates of an optimizer's parameters, unit by unit, during its steps.

    Args:
        optimizer: the optimizer.

    Attributes:
        factors: unit → factor; a unit that is not in it has 1.
        units: id of a parameter → its unit.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.factors: dict[str, float] = {}
        self.units: dict[int, str] = {}
        self._optimizer = optimizer
        # Each group of the optimizer and what it is cut into, while a step runs.
        self._cuts: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        self._handles: list[Any] = []

    def install(self) -> None:
        """Begin to scale.

        Raises:
            ScheduleError: the optimizer has one rate for all parameters whatever its groups say.
        """
        if isinstance(self._optimizer, LBFGS):
            raise ScheduleError(
                "LBFGS has one learning rate for everything, and this schedule sets one for each"
                " part: take another optimizer, or another schedule"
            )
        self._handles = [
            self._optimizer.register_step_pre_hook(self._cut),
            self._optimizer.register_step_post_hook(self.settle),
        ]

    def remove(self) -> None:
        """Stop scaling."""
        self.settle()
        for handle in self._handles:
            handle.remove()

    def settle(self, *_: object) -> None:
        """Give the optimizer its groups back, with what the step wrote into them (a counter).

        Done after each step, and again later in case the step raised.
        """
        if not self._cuts:
            return
        for group, pieces in self._cuts:
            group.update({key: value for key, value in pieces[0].items() if key not in _OWN})
        self._optimizer.param_groups = [group for group, _ in self._cuts]
        self._cuts = []

    def _cut(self, *_: object) -> None:
        self.settle()
        if all(factor == 1 for factor in self.factors.values()):
            return
        self._cuts = [(group, self._pieces(group)) for group in self._optimizer.param_groups]
        self._optimizer.param_groups = [piece for _, pieces in self._cuts for piece in pieces]

    def _pieces(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        names = group.get("param_names", ())
        named = dict(zip(map(id, group["params"]), names, strict=False))
        parts: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            factor = self.factors.get(self.units.get(id(parameter), ""), 1.0)
            parts.setdefault(factor, []).append(parameter)
        pieces = []
        for factor, members in parts.items():
            piece = {**group, "params": members, "lr": group["lr"] * factor}
            if names:
                piece["param_names"] = [named[id(member)] for member in members]
            pieces.append(piece)
        return pieces or [group]
