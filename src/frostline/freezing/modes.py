"""Frozen modules run in eval mode, whatever ``model.train()`` says.

``requires_grad=False`` stops no BatchNorm statistic and no dropout, and one ``model.train()``
undoes ``eval()``. So each frozen module carries a forward pre-hook that sets ``training`` to
False just before it runs. A hook that is an object of a module-level class survives
``train()``, deepcopy, pickle and torch.compile, where an overridden ``train`` method does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from frostline.freezing.flags import is_held_frozen
from frostline.naming import walk_modules


class EvalPin:
    """The hook: forces eval mode, and remembers the mode that the module had before.

    Attributes:
        mode_before: the module's ``training`` when it was pinned.
        is_copy: whether this pin came with a copied or unpickled module; no freeze call stands
            behind it then, and it stays until the module is thawed.
        borrowed: modules without parameters that also serve elsewhere, in a part that trains
            (one shared ``nn.Dropout``); they are in eval mode only while this module runs.
    """

    def __init__(self, *, mode_before: bool) -> None:
        self.mode_before = mode_before
        self.is_copy = False
        self.borrowed: tuple[nn.Module, ...] = ()
        self._lent: list[bool] = []

    def __call__(self, module: nn.Module, args: object) -> None:
        """Put the module, and all that is pinned below it, in eval mode."""
        if module.training:
            # Not only itself: a module may read the mode of a child that it does not call.
            for below in module.modules():
                if pin_of(below) is not None:
                    below.training = False
        if self.borrowed:
            self._lent = [borrowed.training for borrowed in self.borrowed]
            for borrowed in self.borrowed:
                borrowed.training = False

    def give_back(self) -> None:
        """Put the borrowed modules back in the mode that they had."""
        for borrowed, mode in zip(self.borrowed, self._lent, strict=False):
            borrowed.training = mode

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "is_copy": True}


def _give_back(module: nn.Module, args: object, output: object) -> None:
    pin = pin_of(module)
    if pin is not None:
        pin.give_back()


def pin_of(module: nn.Module) -> EvalPin | None:
    """The module's pin, or None; found on the module itself, so that copies have theirs."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, EvalPin):
            return hook
    return None


def pin_frozen_modules(model: nn.Module, *, allowed: bool = True) -> None:
    """Pin every module that is frozen now, and release those that are not.

    A module is frozen when it has parameters, its own or below, none of them is trainable, and
    a freeze holds at least one. One without parameters goes with its nearest ancestor that has
    some, in all places where it hangs. With ``allowed=False`` no module is newly pinned.
    """
    frozen, borrowed = _frozen_modules(model)
    for module in {id(m): m for _, m in walk_modules(model)}.values():
        pin = pin_of(module)
        if id(module) in frozen:
            if pin is None and allowed:
                pin = _pin(module)
            if pin is not None:
                module.training = False
                _lend(module, pin, borrowed.get(id(module), ()))
        elif pin is not None:
            _unpin(module, pin)


def _pin(module: nn.Module) -> EvalPin:
    pin = EvalPin(mode_before=module.training)
    module.register_forward_pre_hook(pin, prepend=True)
    return pin


def _unpin(module: nn.Module, pin: EvalPin) -> None:
    _lend(module, pin, ())
    key = next(key for key, hook in module._forward_pre_hooks.items() if hook is pin)
    del module._forward_pre_hooks[key]
    module.training = pin.mode_before


def _lend(module: nn.Module, pin: EvalPin, borrowed: tuple[nn.Module, ...]) -> None:
    """Have the module borrow these while it runs; the second hook is there only if needed."""
    if borrowed and not pin.borrowed:
        module.register_forward_hook(_give_back, always_call=True)
    elif pin.borrowed and not borrowed:
        key = next(key for key, hook in module._forward_hooks.items() if hook is _give_back)
        del module._forward_hooks[key]
        module._forward_hooks_always_called.pop(key, None)
    pin.borrowed = borrowed


@dataclass
class _Standing:
    """What is known of one module: whether parameters lie below it, and how they stand."""

    has_parameters: bool = False
    trains: bool = False
    held: bool = False
    verdicts: set[bool] = field(default_factory=set)


def _frozen_modules(
    model: nn.Module,
) -> tuple[set[int], dict[int, tuple[nn.Module, ...]]]:
    """Ids of the frozen modules, and for each which parameterless children it only borrows."""
    placements = list(_edges(model))
    standing = {id(module): _own_standing(module) for _, module in placements}
    # Parents precede children in the walk, so the reverse order settles children first.
    for parent, module in reversed(placements):
        if parent is not None:
            _add(standing[id(parent)], standing[id(module)])
    for parent, module in placements:
        mine = standing[id(module)]
        above = standing[id(parent)].verdicts if parent is not None else {False}
        if mine.has_parameters:
            held = mine.held or True in mine.verdicts or above == {True}
            mine.verdicts = {held and not mine.trains}
        else:
            mine.verdicts |= above
    frozen = {key for key, mine in standing.items() if mine.verdicts == {True}}
    borrowed: dict[int, tuple[nn.Module, ...]] = {}
    for parent, module in placements:
        if parent is not None and id(parent) in frozen and id(module) not in frozen:
            borrowed[id(parent)] = (*borrowed.get(id(parent), ()), module)
    return frozen, borrowed


def _edges(model: nn.Module) -> Iterator[tuple[nn.Module | None, nn.Module]]:
    """(parent, module) for every place in the module tree, parents first."""
    stack: list[tuple[nn.Module | None, nn.Module, frozenset[int]]] = [(None, model, frozenset())]
    while stack:
        parent, module, above = stack.pop()
        yield parent, module
        above = above | {id(module)}
        stack.extend(
            (module, child, above)
            for child in reversed(list(module._modules.values()))
            if child is not None and id(child) not in above
        )


def _own_standing(module: nn.Module) -> _Standing:
    pin = pin_of(module)
    own = [p for p in module._parameters.values() if p is not None]
    return _Standing(
        has_parameters=bool(own),
        trains=any(p.requires_grad for p in own),
        held=any(is_held_frozen(p) for p in own) or (pin is not None and pin.is_copy),
    )


def _add(parent: _Standing, child: _Standing) -> None:
    parent.has_parameters |= child.has_parameters
    parent.trains |= child.trains
    parent.held |= child.held and child.has_parameters
