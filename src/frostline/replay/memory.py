"""Which value lies in which piece of memory, while a pass is traced."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from frostline.naming import walk_modules
from frostline.proof.traceless import same_bits
from frostline.replay.graph import Graph


class Memory:
    """Numbers the values of a pass.

    Memory is the unit, not the tensor object: a view descends from what it views, and an in-place
    operation changes all views. Content is not held, only the addresses are kept from reuse.
    """

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self._graph = graph
        self._numbers = itertools.count()
        self._current: dict[int, int] = {}
        self._held: list[object] = []
        self._names: dict[int, str] = {}
        self._originals: dict[str, tuple[Tensor, Tensor]] = {}
        self._written: list[dict[str, tuple[Tensor, Tensor]]] = []
        for name, module in walk_modules(model):
            own = {**vars(module), **module._parameters, **module._buffers}
            for key, tensor in own.items():
                if isinstance(tensor, Tensor):
                    self._know(f"{name}.{key}" if name else key, tensor)

    def _know(self, name: str, tensor: Tensor) -> None:
        value = self._fresh(tensor)
        self._names[address_of(tensor)] = name
        self._graph.names[value] = name
        (self._graph.trainable if tensor.requires_grad else self._graph.constant).add(value)

    def is_known(self, tensor: Tensor) -> bool:
        """Whether the memory has been seen."""
        return address_of(tensor) in self._current

    def value_of(self, tensor: Tensor, *, is_input: bool = False, is_constant: bool = False) -> int:
        """The value that lies in the tensor's memory now; new memory is a value from elsewhere."""
        value = self._current.get(address_of(tensor))
        if value is None:
            value = self._fresh(tensor)
            if is_constant:
                self._graph.constant.add(value)
            elif not is_input:
                self._graph.foreign.add(value)
        if tensor.requires_grad:
            self._graph.trainable.add(value)
        return value

    def write(self, tensor: Tensor) -> int:
        """A new value lies in the tensor's memory."""
        return self._fresh(tensor)

    def about_to_write(self, tensor: Tensor) -> None:
        """The tensor's memory is going to be written: if it is the model's, keep its content."""
        name = self._names.get(address_of(tensor))
        if name is not None and self._written and name not in self._written[-1]:
            self._written[-1][name] = (tensor, tensor.detach().clone())

    def enter(self) -> None:
        """A call begins."""
        self._written.append({})

    def leave(self) -> list[str]:
        """A call ends: names of the model's tensors that are no longer as they were before it."""
        written = self._written.pop()
        outer = self._written[-1] if self._written else self._originals
        changed = []
        for name, (tensor, content) in written.items():
            # What was put back, or only might have been written, is nothing to those around.
            if not same_bits(tensor, content):
                changed.append(name)
                outer.setdefault(name, (tensor, content))
        return changed

    def restore(self) -> bool:
        """Give the model's tensors the content that they had; whether any had been written to."""
        for tensor, content in self._originals.values():
            if not same_bits(tensor, content):
                tensor.data.copy_(content)
        return bool(self._originals)

    def _fresh(self, tensor: Tensor) -> int:
        value = next(self._numbers)
        address = address_of(tensor)
        if address not in self._current:
            self._held.append(_weakly(tensor))
        self._current[address] = value
        return value


def address_of(tensor: Tensor) -> int:
    """What tells a tensor's memory apart from any other's while it is held."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and other opaque layouts
        return id(tensor)


def _weakly(tensor: Tensor) -> object:
    """Keeps the address from being used again, without keeping the content."""
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError):
        return tensor
