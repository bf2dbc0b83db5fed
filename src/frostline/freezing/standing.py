"""Which modules are frozen now, and what the freezes in force want of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from frostline.freezing.flags import (
    NO_WISH,
    Wish,
    claims_in_force,
    claims_on,
    freezes,
    wish_of,
)
from frostline.freezing.modes import pin_module, pin_of, unpin_module


def settle_modes(model: nn.Module) -> None:
    """Pin every module that is frozen now, and release those that are not.

    A module is frozen when it has parameters, its own or below, none of them is trainable, and
    a freeze holds at least one. One without parameters goes with its nearest ancestor that has
    some, in all places where it hangs. A module that trains is pinned if a call asked for it.
    """
    edges = list(_edges(model))
    standing = _standing(edges)
    borrowed: dict[int, tuple[nn.Module, ...]] = {}
    for parent, module in edges:
        mine = standing[id(module)]
        if parent is None or mine.frozen or mine.has_parameters:
            continue
        if standing[id(parent)].wanted is not None:
            borrowed[id(parent)] = (*borrowed.get(id(parent), ()), module)
    for module in {id(module): module for _, module in edges}.values():
        mine = standing[id(module)]
        wish = mine.wanted or NO_WISH
        keeps_padding = isinstance(module, nn.TransformerEncoder) and any(
            (standing[id(layer)].wanted or NO_WISH).eval_mode for layer in module.layers
        )
        if wish.eval_mode or (wish.held_buffers and module._buffers) or keeps_padding:
            pin_module(
                module,
                wish,
                trains=not mine.frozen,
                borrowed=borrowed.get(id(module), ()),
                keeps_padding=keeps_padding,
            )
        elif (pin := pin_of(module)) is not None:
            unpin_module(module, pin)


@dataclass(slots=True)
class _Standing:
    """What is known of one module.

    Attributes:
        has_parameters: whether parameters lie in it or below.
        trains: whether one of them does.
        held: whether a freeze holds one of them.
        wish: what is wanted of the module if it is frozen.
        own_wish: what is wanted of it although it may train.
        frozen: whether it is; None until the places where it hangs were looked at.
    """

    has_parameters: bool
    trains: bool = False
    held: bool = False
    wish: Wish = NO_WISH
    own_wish: Wish | None = None
    frozen: bool | None = None

    @property
    def wanted(self) -> Wish | None:
        """What is to be done with the module; None: leave it alone."""
        if not self.frozen:
            return self.own_wish
        return self.wish if self.own_wish is None else _both(self.wish, self.own_wish)


def _standing(edges: list[tuple[nn.Module | None, nn.Module]]) -> dict[int, _Standing]:
    standing = {id(module): _own_standing(module) for _, module in edges}
    # Parents precede children in the walk, so the reverse order settles children first.
    for parent, module in reversed(edges):
        if parent is not None:
            _add(standing[id(parent)], standing[id(module)])
    for parent, module in edges:
        mine = standing[id(module)]
        above = standing[id(parent)] if parent is not None else None
        in_frozen = above is not None and bool(above.frozen)
        if above is not None and in_frozen:
            mine.wish = _both(mine.wish, above.wish)
        if mine.has_parameters:
            mine.frozen = not mine.trains and (mine.held or in_frozen or bool(mine.frozen))
        else:
            mine.frozen = in_frozen and mine.frozen is not False
    return standing


def _edges(model: nn.Module) -> Iterator[tuple[nn.Module | None, nn.Module]]:
    """(parent, module) for every place in the module tree, parents first."""
    stack: list[tuple[nn.Module | None, nn.Module, frozenset[int]]] = [(None, model, frozenset())]
    while stack:
        parent, module, above = stack.pop()
        yield parent, module
        if module._modules:
            above = above | {id(module)}
            stack.extend(
                (module, child, above)
                for child in reversed(list(module._modules.values()))
                if child is not None and id(child) not in above
            )


def _own_standing(module: nn.Module) -> _Standing:
    own = [p for p in module._parameters.values() if p is not None]
    mine = _Standing(bool(own))
    thawed = False
    for parameter in own:
        if parameter.requires_grad:
            mine.trains = True
        claims = claims_on(parameter)
        if not claims:
            continue
        if len(claims) == 1 and claims[0].trainable is False:  # the rule, in large models
            mine.held = True
            mine.wish = _both(mine.wish, claims[0].wish)
            continue
        in_force = claims_in_force(claims)
        wish = wish_of(in_force)
        if freezes(in_force):
            mine.held = True
            mine.wish = _both(mine.wish, wish)
        elif in_force:  # claims that are about the modules alone
            mine.own_wish = _both(mine.own_wish or NO_WISH, wish)
        thawed = thawed or not in_force
    pin = pin_of(module)
    if pin is not None and pin.is_copy:
        if not pin.trains:
            mine.held, mine.wish = True, _both(mine.wish, pin.wish)
        elif not thawed:
            mine.own_wish = pin.wish
    return mine


def _add(parent: _Standing, child: _Standing) -> None:
    if child.has_parameters:
        parent.has_parameters = True
        parent.trains |= child.trains
        if child.held:
            parent.held = True
            parent.wish = _both(parent.wish, child.wish)


def _both(one: Wish, other: Wish) -> Wish:
    if one is other or other is NO_WISH:
        return one
    if one is NO_WISH:
        return other
    return Wish(one.eval_mode or other.eval_mode, one.held_buffers or other.held_buffers)
