"""How the freezing gets into the Trainer's checkpoints: inside the optimizer's state.

A callback is told neither the folder that a checkpoint goes to nor the one that a run resumes
from. The optimizer's state goes through both, tensors included, before ``on_train_begin``; and
torch keeps what it does not know in a group as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

_KEY = "frostline"


def take_carried(optimizer: Optimizer) -> Mapping[str, Any] | None:
    """What a loaded optimizer state brought along, taken out of the optimizer; None if nothing.

    >>> import torch
    >>> one, other = (torch.optim.SGD([torch.ones(1)], lr=0.1) for _ in range(2))
    >>> carrier = Carrier(one, lambda: {"phase": 3})
    >>> other.load_state_dict(one.state_dict())
    >>> take_carried(other), take_carried(other)
    ({'phase': 3}, None)
    """
    carried: Mapping[str, Any] | None = optimizer.param_groups[0].pop(_KEY, None)
    return carried


class Carrier:
    """Puts something into every ``state_dict()`` of an optimizer, until it is removed.

    Args:
        optimizer: the optimizer whose state is saved, not a wrapper around it.
        give: makes what is put in: plain types and tensors, as ``torch.load`` reads them with
            ``weights_only=True``. It may ask for the optimizer's state itself.
    """

    def __init__(self, optimizer: Optimizer, give: Callable[[], Mapping[str, Any]]) -> None:
        self._give = give
        self._is_giving = False
        self._handle = optimizer.register_state_dict_post_hook(self._put)

    def remove(self) -> None:
        """Put nothing in any more."""
        self._handle.remove()

    def _put(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        if self._is_giving:
            return
        self._is_giving = True
        try:
            state["param_groups"][0][_KEY] = self._give()
        finally:
            self._is_giving = False
