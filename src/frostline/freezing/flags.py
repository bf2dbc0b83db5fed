"""Who holds which parameter frozen or trainable, so that any call can be undone in any order.

Every freeze and thaw lays a claim on each parameter that it is about, on top of the claims that
are there. A claim knows what ``requires_grad`` was before it. Undoing the top claim puts that
back; undoing one further down hands it to the claim above and changes nothing yet.

Claims live beside the parameters: an attribute on a tensor would be lost by deepcopy and written
into the user's pickles. A parameter that dies takes its claims along.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn


class Wish(NamedTuple):
    """What a call wants of the modules around the parameters that it claims.

    Attributes:
        eval_mode: that they run in eval mode.
        held_buffers: that their buffers stay what they are.
    """

    eval_mode: bool
    held_buffers: bool


NO_WISH = Wish(eval_mode=False, held_buffers=False)


@dataclass(slots=True)
class Claim:
    """One call's hold on one parameter.

    Attributes:
        owner: token of the call.
        trainable: the ``requires_grad`` that the call set; None if it is only about modules.
        wish: what the call wants of the parameter's modules.
        before: the ``requires_grad`` that undoing it restores.
    """

    owner: int
    trainable: bool | None
    wish: Wish
    before: bool


# By identity, since tensors can't be compared: parameters that were made trainable at some time.
_thawed: dict[int, weakref.ref[nn.Parameter]] = {}


def note_thaw(parameter: nn.Parameter) -> None:
    """Remember that the parameter may have been trained, whatever becomes of its claims."""
    key = id(parameter)
    if key not in _thawed:
        _thawed[key] = weakref.ref(parameter, lambda _: _thawed.pop(key, None))


def was_thawed(parameter: nn.Parameter) -> bool:
    """Whether a call made the parameter trainable at some time in this process."""
    return id(parameter) in _thawed


def hand_on(old: nn.Parameter, new: nn.Parameter) -> None:
    """Lay on ``new``, which hangs in ``old``'s place by now, all that is known of ``old``."""
    stack = _stacks.pop(id(old), None)
    if stack is not None:
        later = claims_on(new)
        heir = _stacks[id(new)] = _Stack(new, _forget)
        heir.claims, heir.key = [*stack.claims, *later], id(new)
    if was_thawed(old):
        note_thaw(new)


class _Stack(weakref.ref[nn.Parameter]):
    """The claims on one parameter; it removes itself when the parameter dies."""

    __slots__ = ("claims", "key")

    claims: list[Claim]
    key: int


_stacks: dict[int, _Stack] = {}


def _forget(stack: weakref.ref[nn.Parameter]) -> None:
    assert isinstance(stack, _Stack)
    _stacks.pop(stack.key, None)


def claims_on(parameter: nn.Parameter) -> list[Claim]:
    """The claims on a parameter, oldest first."""
    stack = _stacks.get(id(parameter))
    return stack.claims if stack is not None else []


def lay_claim(
    parameter: nn.Parameter, owner: int, *, trainable: bool | None, wish: Wish = NO_WISH
) -> None:
    """Set ``requires_grad`` on behalf of ``owner``, unless ``trainable`` is None.

    A dtype that cannot have gradients (int8 weights) is claimed and stays as it is.
    """
    before = parameter.requires_grad
    if trainable is not None and trainable != before:
        parameter.requires_grad = trainable and can_train(parameter)
        if trainable:
            note_thaw(parameter)
    key = id(parameter)
    stack = _stacks.get(key)
    if stack is None:
        stack = _stacks[key] = _Stack(parameter, _forget)
        stack.claims, stack.key = [], key
    stack.claims.append(Claim(owner, trainable, wish, before))


def release_claims(parameter: nn.Parameter, owner: int) -> None:
    """Undo ``owner``'s claims exactly, as far as no later claim stands on them."""
    claims = claims_on(parameter)
    trains = _release(claims, owner, trains=parameter.requires_grad)
    if trains != parameter.requires_grad:
        parameter.requires_grad = trains
        if trains:
            note_thaw(parameter)
    if not claims:
        _stacks.pop(id(parameter), None)


def would_train(parameter: nn.Parameter, owner: int) -> bool:
    """Whether the parameter trains once ``owner``'s claims on it are undone."""
    claims = [replace(claim) for claim in claims_on(parameter)]
    return _release(claims, owner, trains=parameter.requires_grad)


def is_held_frozen(parameter: nn.Parameter) -> bool:
    """Whether some call that was not undone froze the parameter, and none thawed it since."""
    return freezes(claims_in_force(claims_on(parameter)))


def is_held_by(parameter: nn.Parameter, owner: int) -> bool:
    """Whether ``owner``'s freeze of the parameter is in force: not undone, not thawed since."""
    for claim in claims_in_force(claims_on(parameter)):
        if claim.owner == owner and claim.trainable is False:
            return True
    return False


def claims_in_force(claims: list[Claim]) -> list[Claim]:
    """Of the claims on a parameter, those that no later thaw lifted."""
    for index in range(len(claims) - 1, -1, -1):
        if claims[index].trainable:
            return claims[index + 1 :]
    return claims


def freezes(claims: list[Claim]) -> bool:
    """Whether one of the claims freezes."""
    return any(claim.trainable is False for claim in claims)


def wish_of(claims: list[Claim]) -> Wish:
    """What the claims want, together, of the modules around the parameter."""
    if len(claims) == 1:
        return claims[0].wish
    return Wish(
        eval_mode=any(claim.wish.eval_mode for claim in claims),
        held_buffers=any(claim.wish.held_buffers for claim in claims),
    )


def can_train(parameter: nn.Parameter) -> bool:
    """Whether the dtype can have gradients."""
    return parameter.is_floating_point() or parameter.is_complex()


def _place(claims: list[Claim], owner: int) -> int | None:
    return next((i for i, claim in enumerate(claims) if claim.owner == owner), None)


def _release(claims: list[Claim], owner: int, *, trains: bool) -> bool:
    """Take ``owner``'s claims out of the list; the flag that is left if it was ``trains``."""
    while (index := _place(claims, owner)) is not None:
        trains = _drop(claims, index, trains=trains)
        # A thaw that had lifted the freeze just undone, and lifts nothing else, goes with it:
        # undoing the freeze must not leave "trainable" where "frozen by hand" was before.
        while index < len(claims) and claims[index].trainable and not freezes(claims[:index]):
            trains = _drop(claims, index, trains=trains)
    return trains


def _drop(claims: list[Claim], index: int, *, trains: bool) -> bool:
    claim = claims.pop(index)
    if index == len(claims):
        return claim.before
    claims[index].before = claim.before
    return trains
