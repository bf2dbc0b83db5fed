"""What the modules returned while a pass was traced, so that it need not be computed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from frostline.replay.nest import open_nest, rebuild

_MOST_BYTES = 2**28
"""Of larger passes nothing is held: memory is dearer there than one more computation."""


class Captured:
    """Outputs of frozen calls, of the outermost ones that have returned, and of the whole pass.

    >>> import torch
    >>> captured = Captured()
    >>> inner, outer = torch.ones(2), torch.zeros(2)
    >>> captured.add(1, [inner]); captured.add(0, [outer])
    >>> captured.tensors(1) is None, captured.tensors(0)[0] is outer
    (True, True)
    >>> _ = outer.add_(1)
    >>> captured.tensors(0) is None  # written to since
    True
    """

    def __init__(self) -> None:
        self.output: Any = None
        self._held: dict[int, list[tuple[Tensor, int]]] = {}
        self._bytes: dict[int, int] = {}
        self._is_full = False

    def add(self, index: int, tensors: Sequence[Tensor]) -> None:
        """Hold what the call of this index returned, and no longer what those inside of it did."""
        while self._held and next(reversed(self._held)) > index:
            self._forget(next(reversed(self._held)))
        if self._is_full or any(t.is_inference() or t.requires_grad for t in tensors):
            return
        storages = [tensor.untyped_storage() for tensor in tensors]
        self._bytes[index] = sum({s.data_ptr(): s.nbytes() for s in storages}.values())
        self._held[index] = [(tensor, tensor._version) for tensor in tensors]
        if sum(self._bytes.values()) > _MOST_BYTES:
            self._is_full = True
            self._held.clear()
            self._bytes.clear()

    def tensors(self, index: int) -> list[Tensor] | None:
        """What a call returned; None if it is not held, or was written to after it returned."""
        held = self._held.get(index)
        if held is None or any(tensor._version != version for tensor, version in held):
            return None
        return [tensor for tensor, _ in held]

    def end(self, output: Any) -> None:
        """Hold what the whole pass returned, without what autograd keeps for it."""
        tensors = open_nest(output).tensors
        flags = [tensor.requires_grad for tensor in tensors]
        alone = [t.detach().requires_grad_(flag) for t, flag in zip(tensors, flags, strict=True)]
        self.output = rebuild(output, alone)

    def _forget(self, index: int) -> None:
        del self._held[index], self._bytes[index]
