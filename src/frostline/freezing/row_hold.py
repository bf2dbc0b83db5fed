"""Part of a tensor held: the hook that puts frozen rows back.

An optimizer knows no rows: weight decay, momentum, Adam's state and Muon's orthogonalisation all
move rows whose gradient is zero. So the rows are noted once and put back, bit for bit, right
after every step of every torch optimizer; and before forward and around ``state_dict`` and
``load_state_dict`` too, for whoever writes by other means. Their gradient is zeroed as well: it
would count in gradient clipping.

The hook hangs on the owning module. A copy or an unpickled module brings its own, which enlists
itself when it is restored, so it holds from the copy's first optimizer step on.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from frostline.proof.fingerprint import has_plain_content
from frostline.proof.reference import Movement, difference


class KeptRows:
    """What the rows of one tensor held, shared by all modules that hold the tensor.

    Attributes:
        index: the rows, sorted; int64 of shape (count,).
        first, last: the lowest and the highest of them.
        dim: the dimension that they count along.
        values: their content, in the dtype that they had when they were frozen.
        lifted: how many thaws of the whole tensor stand on this hold.
    """

    def __init__(self, parameter: nn.Parameter, index: Tensor, dim: int) -> None:
        self.index = index
        self.dim = dim
        self.first, self.last = int(index[0]), int(index[-1])
        self.lifted = 0
        # Parameters that zero the gradient of these rows, by id; a copy's have lost their hooks.
        self._zeroing: dict[int, weakref.ref[nn.Parameter]] = {}
        self.note(parameter)

    def note(self, parameter: nn.Parameter) -> None:
        """Take the rows as they are now for what is to be kept."""
        self.index = self.index.to(parameter.device)
        self.values = parameter.data.index_select(self.dim, self.index)

    def restore(self, parameter: nn.Parameter) -> None:
        """Put the rows back, and see to it that their gradient is zero."""
        if self.lifted or not _is_writable(parameter):
            return
        self._follow(parameter)
        # .data: for autograd nothing happened, since the rows hold what they held.
        if self.last - self.first + 1 == len(self.index):  # in one piece, as slices are: faster
            parameter.data.narrow(self.dim, self.first, len(self.index)).copy_(self.values)
        else:
            parameter.data.index_copy_(self.dim, self.index, self.values.to(parameter.dtype))
        if parameter.requires_grad:
            self._zero_gradients_of(parameter)

    def movement(self, parameter: Tensor) -> Movement | None:
        """None if the rows hold what they held; else how far they moved."""
        if parameter.is_meta or parameter.shape[self.dim] <= self.last:
            return Movement(compared=0, moved=0, max_abs=float("nan"))
        self._follow(parameter)
        now = parameter.detach().index_select(self.dim, self.index)
        kept = self.values.to(parameter.dtype)
        if now.shape != kept.shape:
            return Movement(compared=0, moved=0, max_abs=float("nan"))
        found = difference(kept.reshape(-1).cpu(), now.reshape(-1).cpu())
        return found if found.moved else None

    def _follow(self, parameter: Tensor) -> None:
        # The device is followed; the dtype is not, so that going through half precision and
        # back ends where it began.
        if self.values.device != parameter.device:
            self.values = self.values.to(parameter.device)
            self.index = self.index.to(parameter.device)

    def _zero_gradients_of(self, parameter: nn.Parameter) -> None:
        known = self._zeroing.get(id(parameter))
        if known is None or known() is not parameter:
            self._zeroing[id(parameter)] = weakref.ref(parameter)
            parameter.register_hook(_ZeroRows(self))  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zeroing": {}}


class _ZeroRows:
    """Tensor hook: zero the gradient of the rows as long as somebody holds them."""

    __torch_unserializable__ = True

    def __init__(self, kept: KeptRows) -> None:
        self._kept = weakref.ref(kept)

    def __call__(self, gradient: Tensor) -> Tensor:
        kept = self._kept()
        if kept is None or kept.lifted:
            return gradient
        index = kept.index.to(gradient.device)
        if not gradient.is_sparse:
            return gradient.index_fill(kept.dim, index, 0)
        zeroed = gradient.clone()
        places, values = zeroed._indices(), zeroed._values()
        if kept.dim < len(places):
            values[torch.isin(places[kept.dim], index)] = 0
        else:
            values.index_fill_(kept.dim - len(places) + 1, index, 0)
        return zeroed


class RowHold:
    """The module's hook; found on the module itself, so that copies have theirs.

    Attributes:
        key: the tensor's attribute name in its module.
        kept: the rows.
    """

    def __init__(self, module: nn.Module, key: str, kept: KeptRows) -> None:
        self.key = key
        self.kept = kept
        self._module = weakref.ref(module)
        self._hooks: tuple[RemovableHandle, ...] = (
            module.register_forward_pre_hook(self, prepend=True),
            module.register_state_dict_pre_hook(self),  # type: ignore[no-untyped-call]
            module.register_load_state_dict_post_hook(self),  # type: ignore[no-untyped-call]
        )
        _enlist(self)
        self.restore()

    @property
    def parameter(self) -> nn.Parameter | None:
        """The tensor that the module holds there now."""
        module = self._module()
        found = module._parameters.get(self.key) if module is not None else None
        return found if isinstance(found, nn.Parameter) else None

    def restore(self) -> None:
        """Put the rows back."""
        parameter = self.parameter
        if parameter is not None:
            self.kept.restore(parameter)

    def __call__(self, module: nn.Module, *_: object) -> None:
        """Put the rows back, at the moments that the module was given the hook for."""
        # A compiled graph has no room for this, and needs none: optimizers step outside of it.
        if not torch.compiler.is_compiling():
            self.restore()

    def detach(self) -> None:
        """Hang on no module any more."""
        for hook in self._hooks:
            hook.remove()
        _enlisted.discard(self)

    def __getstate__(self) -> dict[str, Any]:
        # A module in place of the weak reference: the copy then finds the copied one here.
        return {"key": self.key, "kept": self.kept, "module": self._module()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.key, self.kept = state["key"], state["kept"]
        self._module = weakref.ref(state["module"])
        self._hooks = ()
        _enlist(self)


_enlisted: weakref.WeakSet[RowHold] = weakref.WeakSet()
_watching: list[object] = []


def row_holds(module: nn.Module, key: str) -> Iterator[RowHold]:
    """The row holds on one tensor of a module."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, RowHold) and hook.key == key:
            yield hook


def _enlist(hold: RowHold) -> None:
    _enlisted.add(hold)
    if not _watching:
        _watching.append(register_optimizer_step_post_hook(_after_step))


def _after_step(optimizer: object, args: object, kwargs: object) -> None:
    """Restore whatever rows are held, also where this optimizer does not seem to hold them.

    It may write through another tensor on the same memory, or through a copy of its own.
    """
    done: set[tuple[int, int]] = set()
    for hold in list(_enlisted):
        key = (id(hold.parameter), id(hold.kept))
        if key not in done:
            done.add(key)
            hold.restore()


def _is_writable(parameter: nn.Parameter) -> bool:
    """Not a stand-in for a tensor: on meta, faked, or wrapped by a transform."""
    return type(parameter.data) is Tensor and has_plain_content(parameter)
