"""Something else in place of modules' ``forward``, for a while, on the instances themselves.

Hooks of the modules run as ever, before and after. A model that is copied or pickled meanwhile
gives a copy whose modules have their own ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import nn

from frostline.replay.compiled import slot_of
from frostline.replay.sharded_blocks import is_block

Forward = Callable[..., Any]
Handler = Callable[[str, nn.Module, Forward, tuple[Any, ...], dict[str, Any]], Any]
"""``handle(name, module, forward, args, kwargs)`` makes the call, or does not."""

_HOOKED = "_call_impl"
"""What runs a module's hooks and forward; a stand-in there is before the hooks."""


class StandIn:
    """Takes the place of one module's ``forward``, or of what its call was compiled to."""

    def __init__(self, name: str, module: nn.Module, handle: Handler) -> None:
        self._name = name
        self._module = module
        self._handle = handle
        self._slot = _slot_of(name, module)
        self._before = vars(module).get(self._slot)
        self._forward: Forward = getattr(module, self._slot)
        self.put()

    def put(self) -> None:
        """Take the place."""
        self._is_closed = False
        # Past __setattr__, which takes several times as long, for every batch.
        vars(self._module)[self._slot] = self

    def can_put_again(self, module: nn.Module) -> bool:
        """Whether this may take a module's place again: it is closed, and leads to what is there.

        What somebody put there meanwhile may lead here, and a class may have another forward.
        """
        slot = _slot_of(self._name, module)
        is_same = self._module is module and vars(module).get(slot) is self._before
        is_lowest = not isinstance(self._before, StandIn)
        return is_same and is_lowest and getattr(module, slot) == self._forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Have the call made."""
        # Somebody who stands above may still lead here; and a compiled copy of the whole model,
        # which has the loop's calls in it, is computed as it is.
        if self._is_closed or torch.compiler.is_compiling():
            return self._forward(*args, **kwargs)
        return self._handle(self._name, self._module, self._forward, args, kwargs)

    @staticmethod
    def behind(forward: Any) -> Any:
        """What an instance's ``forward`` is without stand-ins; None for the class's own."""
        while isinstance(forward, StandIn):
            forward = forward._before
        return forward

    def put_back(self) -> None:
        """Leave the module as it was; those that stand above may be put back later."""
        self._is_closed = True
        held = vars(self._module)
        if held.get(self._slot) is not self:
            return  # somebody else replaced it meanwhile, and has the last word
        before = self._before
        while isinstance(before, StandIn) and before._is_closed:
            before = before._before
        if before is None:
            del held[self._slot]
        else:
            held[self._slot] = before

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # The copy of the module is in the memo by now: its attributes are being copied.
        return _own(self._slot, memo.get(id(self._module), self._module))

    def __reduce__(self) -> tuple[Any, ...]:
        return _own, (self._slot, self._module)


def _slot_of(name: str, module: nn.Module) -> str:
    """A sharded block is gathered by its hooks, so what stands in for it stands before them.

    The model itself is gathered for the parts that run.
    """
    return _HOOKED if name and is_block(module) else slot_of(module)


def _own(slot: str, module: nn.Module) -> Forward:
    kind = type(module)
    return MethodType(kind._call_impl if slot == _HOOKED else kind.forward, module)


class StandIns:
    """Has ``handle`` make the calls of some modules, until it is closed.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Identity())
    >>> with StandIns(lambda *call: call[0]) as stand_ins:
    ...     stand_ins.cover({"0": model[0]})
    ...     model(1)
    '0'
    >>> model(1)
    1
    """

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._placed: dict[str, StandIn] = {}
        # The same ones every time: to torch.compile another one is a reason to compile anew.
        self._known: dict[str, StandIn] = {}

    def cover(self, modules: Mapping[str, nn.Module]) -> None:
        """Take the place of these modules' forwards, too."""
        for name, module in modules.items():
            if name in self._placed:
                continue
            known = self._known.get(name)
            if known is not None and known.can_put_again(module):
                known.put()
            else:
                known = self._known[name] = StandIn(name, module, self._handle)
            self._placed[name] = known

    def __enter__(self) -> StandIns:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave all modules as they were."""
        for stand_in in reversed(self._placed.values()):
            stand_in.put_back()
        self._placed.clear()
