"""The plasticity of the front block: what it sees in a batch, against a snapshot of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frostline.freezer.scene import Scene

_SAMPLES = 64
_SAMPLES = 64


class Similarity:
    """Runs the lowest block that trains, and its snapshot, on the input of the last step.

    Everything below that block is frozen, so block and snapshot get what a snapshot of the whole
    model would hand them. Both run in eval mode without gradients: no statistic moves, no random
    number is drawn. The input is what the block was given while it trained, so a replayed prefix
    serves as well as a computed one.
    """

    def __init__(self) -> None:
        self._unit: str | None = None
        self._snapshot: dict[str, Tensor] = {}
        self._call: tuple[Any, Any] | None = None
        self._hook: Any = None

    def arm(self, scene: Scene) -> None:
        """Catch the block's input in the step that comes; take a snapshot if there is none."""
        self._call = None
        self._let_go()
        if scene.front is None:
            return
        unit, module = scene.front
        if unit != self._unit or not self._snapshot:
            self._unit, self._snapshot = unit, _tensors(module)
        self._hook = module.register_forward_pre_hook(self._catch, with_kwargs=True)

    def look(self, scene: Scene) -> None:
        """The step's forwards are over: nothing more to catch."""
        self._let_go()

    def read(self, scene: Scene) -> Mapping[str, float]:
        """The front block → its plasticity; empty if it was not called, or gives no tensor."""
        self._let_go()
        if self._call is None or scene.front is None or scene.front[0] != self._unit:
            return {}
        unit, module = scene.front
        args, kwargs = self._call
        modes = [(inner, inner.training) for inner in module.modules()]
        try:
            module.eval()
            with torch.no_grad():
                now = _first_tensor(module(*args, **kwargs))
                then = _first_tensor(
                    torch.func.functional_call(module, self._snapshot, args, kwargs)
                )
        finally:
            for inner, mode in modes:
                inner.training = mode
        return {} if now is None or then is None else {unit: plasticity(now, then)}

    def restart(self) -> None:
        """Take a new snapshot before the next step."""
        self._snapshot, self._call = {}, None
        self._let_go()

    def state(self) -> dict[str, Any]:
        """The snapshot, and the block that it is of."""
        return {"unit": self._unit, "snapshot": dict(self._snapshot)}

    def load(self, state: Mapping[str, Any]) -> None:
        """The snapshot as it was."""
        self.restart()
        self._unit = state["unit"]
        self._snapshot = {name: tensor.clone() for name, tensor in state["snapshot"].items()}

    def _catch(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self._call = torch.utils._pytree.tree_map_only(
                Tensor, lambda tensor: tensor.detach(), (args, kwargs)
            )

    def _let_go(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def plasticity(now: Tensor, then: Tensor) -> float:
    """How differently two outputs, of shape (batch, …), see the samples' likeness; 0 if alike.

    ``‖Ĝ_now - Ĝ_then‖² / b²``, with ``Ĝ`` the samples' inner products, each row scaled to length
    1. At most 64 samples are compared.

    >>> import torch
    >>> plasticity(torch.eye(2), torch.eye(2))
    0.0
    >>> round(plasticity(torch.eye(2), torch.ones(2, 2)), 4)
    0.2929
    """
    likeness = [_likeness(outputs) for outputs in (now, then)]
    batch = likeness[0].shape[0]
    return float((likeness[0] - likeness[1]).square().sum()) / batch**2


def _likeness(outputs: Tensor) -> Tensor:
    flat = outputs[:_SAMPLES].detach().flatten(1).float()
    return nn.functional.normalize(flat @ flat.T, dim=1)


def _first_tensor(output: object) -> Tensor | None:
    leaves = torch.utils._pytree.tree_leaves(output)
    return next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim > 1), None)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}
