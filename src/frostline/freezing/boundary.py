"""Transitions happen only at a step boundary: no gradient is waiting to be applied."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from frostline.errors import TransitionError
from frostline.naming import Inventory
from frostline.shards import local_part, team_of

PendingGradients = Literal["refuse", "drop"]
"""What to do with gradients that wait for an optimizer step: raise, or throw them away."""


def settle_gradients(inventory: Inventory, pending: PendingGradients) -> None:
    """See to it that no parameter has a gradient that an optimizer could still apply.

    A gradient of zeros (``zero_grad(set_to_none=False)``) is not pending and stays.

    Raises:
        TransitionError: gradients are pending and were to be refused. Nothing has changed.
    """
    if pending not in ("refuse", "drop"):
        raise ValueError(f"gradients is 'refuse' or 'drop', got {pending!r}")
    waiting = [
        (name, parameter)
        for group in inventory.groups
        for name, parameter in group.named.items()
        if parameter.grad is not None
    ]
    if pending == "drop":
        for _, parameter in waiting:
            parameter.grad = None
        return
    found = next((name for name, parameter in waiting if _is_pending(parameter)), None)
    team = team_of(parameter for _, parameter in waiting)
    if team is not None:  # of a sharded gradient this rank's part may be zero, and another's not
        found = next(filter(None, team.share(found)), None)
    if found is not None:
        raise TransitionError(
            f"{found} has a gradient, so this may be the middle of a step. Freeze and thaw"
            " between steps: call optimizer.zero_grad() first, or pass gradients='drop' to"
            " throw the model's gradients away"
        )


def _is_pending(parameter: nn.Parameter) -> bool:
    assert parameter.grad is not None
    gradient = local_part(parameter.grad)
    if gradient.is_meta:
        return True
    with torch.no_grad():
        values = gradient._values() if gradient.layout is torch.sparse_coo else gradient
        return bool(values.any())
