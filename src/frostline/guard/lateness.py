"""Thaws that come too late for the step under way: after the forward, before the backward.

What was frozen during the forward is not in its graph, so the backward brings no gradient, in
silence. Torch tells nobody of a change of flag; so what was frozen is noted as a forward begins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from frostline.guard.roster import Roster
from frostline.guard.violation import Violation

_DETAIL = (
    "it is trainable, but was frozen as the latest forward began, and no gradient reached it: it"
    " was probably thawed between forward and backward. Thaw at a step boundary, after"
    " optimizer.step() and before the next forward"
)


class Lateness:
    """What was frozen as the latest forward of this step began.

    Attributes:
        entrances: the modules whose forwards are to be noted: the model and its direct children,
            as a loop may call these one by one; without those that cannot be heard.
    """

    def __init__(self) -> None:
        self.entrances: list[nn.Module] = []
        self._inside: dict[int, list[nn.Parameter]] = {}
        self._was_frozen: dict[int, bool] = {}

    def take_in(self, model: nn.Module, audible: Sequence[nn.Module]) -> None:
        """Learn which parameters lie in which entrance; the model has changed."""
        hearable = {id(module) for module in audible}
        self.entrances = [m for m in (model, *model.children()) if id(m) in hearable]
        self._inside = {id(m): list(m.parameters()) for m in self.entrances}

    def note_forward(self, module: nn.Module) -> None:
        """A forward enters; one under ``no_grad`` has no backward, and does not count."""
        if torch.is_grad_enabled():
            for parameter in self._inside.get(id(module), ()):
                self._was_frozen[id(parameter)] = not parameter.requires_grad

    def forget(self) -> None:
        """A step is over: what is thawed from now on is in time for the next."""
        self._was_frozen.clear()

    def faults(self, roster: Roster, step: int) -> list[Violation]:
        """Those that train by now, but did not in the forward whose gradients are applied."""
        late = [
            name
            for name, parameter in roster.trainable.items()
            if parameter.grad is None and self._was_frozen.get(id(parameter), False)
        ]
        # With no gradient anywhere there was no backward, and nothing came too late for it.
        if not late or all(p.grad is None for p in roster.trainable.values()):
            return []
        return [Violation(kind="thaw", name=name, step=step, detail=_DETAIL) for name in late]
