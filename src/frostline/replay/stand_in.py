"""Something else in place of modules' ``forward``, for a while, on the instances themselves.

Hooks of the modules run as ever, before and after. A model that is copied or pickled meanwhile
gives a copy whose modules have their own ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from torch import nn

from frostline.naming import walk_modules

Forward = Callable[..., Any]
Handler = Callable[[str, nn.Module, Forward, tuple[Any, ...], dict[str, Any]], Any]
"""``handle(name, module, forward, args, kwargs)`` makes the call, or does not."""


class StandIn:
    """Takes the place of one module's ``forward``."""

    def __init__(self, name: str, module: nn.Module, handle: Handler) -> None:
        self._name = name
        self._module = module
        self._handle = handle
        self._before = vars(module).get("forward")
        self._forward = module.forward
        self._is_closed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Have the call made."""
        if self._is_closed:  # somebody who stands above still leads here
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
        if held.get("forward") is not self:
            return  # somebody else replaced it meanwhile, and has the last word
        before = self._before
        while isinstance(before, StandIn) and before._is_closed:
            before = before._before
        if before is None:
            del held["forward"]
        else:
            held["forward"] = before

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # The copy of the module is in the memo by now: its attributes are being copied.
        return _own_forward(memo.get(id(self._module), self._module))

    def __reduce__(self) -> tuple[Any, ...]:
        return _own_forward, (self._module,)


def _own_forward(module: nn.Module) -> Forward:
    return MethodType(type(module).forward, module)


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

    def cover(self, modules: Mapping[str, nn.Module]) -> None:
        """Take the place of these modules' forwards, too."""
        for name, module in modules.items():
            if name not in self._placed:
                self._placed[name] = stand_in = StandIn(name, module, self._handle)
                # Past __setattr__, which takes several times as long, for every batch.
                vars(module)["forward"] = stand_in

    def __enter__(self) -> StandIns:
        return self

    def __exit__(self, *error: object) -> None:
        for stand_in in reversed(self._placed.values()):
            stand_in.put_back()
        self._placed.clear()


def called_modules(model: nn.Module) -> dict[str, nn.Module]:
    """First name → module, for modules that have a forward: lists of modules have none."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in walk_modules(model):
        if type(module).forward is not nn.Module.forward:
            found.setdefault(id(module), (name, module))
    return dict(found.values())
