"""Who holds which parameter frozen or trainable, so that any call can be undone in any order.

Every freeze and thaw lays a claim on each parameter that it is about, on top of the claims that
are there. A claim knows what ``requires_grad`` was before it. Undoing the top claim puts that
back; undoing one further down hands it to the claim above and changes nothing yet.

Claims live beside the parameters: an attribute on a tensor would be lost by deepcopy and written
into the user's pickles. A parameter that dies takes its claims along.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from torch import nn


@dataclass
class Claim:
    """One call's hold on one parameter.

    Attributes:
        owner: token of the call.
        trainable: the ``requires_grad`` that the call set.
        before: the ``requires_grad`` that undoing it restores.
    """

    owner: int
    trainable: bool
    before: bool


@dataclass
class _Stack:
    """The claims on one parameter, and the reference that removes them when it dies."""

    claims: list[Claim]
    guard: weakref.ref[nn.Parameter]


_stacks: dict[int, _Stack] = {}


def claims_on(parameter: nn.Parameter) -> list[Claim]:
    """The claims on a parameter, oldest first."""
    stack = _stacks.get(id(parameter))
    return stack.claims if stack is not None else []


def lay_claim(parameter: nn.Parameter, owner: int, *, trainable: bool) -> None:
    """Set ``requires_grad`` on behalf of ``owner``.

    A dtype that cannot have gradients (int8 weights) is claimed and stays as it is.
    """
    before = parameter.requires_grad
    differentiable = parameter.is_floating_point() or parameter.is_complex()
    parameter.requires_grad_(trainable and differentiable)
    key = id(parameter)
    if key not in _stacks:
        guard = weakref.ref(parameter, lambda _: _stacks.pop(key, None))
        _stacks[key] = _Stack(claims=[], guard=guard)
    _stacks[key].claims.append(Claim(owner=owner, trainable=trainable, before=before))


def release_claim(parameter: nn.Parameter, owner: int) -> None:
    """Undo ``owner``'s claim exactly, as far as no later claim stands on it."""
    stack = claims_on(parameter)
    index = next((i for i, claim in enumerate(stack) if claim.owner == owner), None)
    if index is None:
        return
    _drop(parameter, stack, index)
    # A thaw that had lifted the freeze just undone, and lifts nothing else, goes with it:
    # undoing the freeze must not leave "trainable" where "frozen by hand" was before.
    while index < len(stack) and stack[index].trainable and not _any_freeze(stack[:index]):
        _drop(parameter, stack, index)
    if not stack:
        del _stacks[id(parameter)]


def is_held_frozen(parameter: nn.Parameter) -> bool:
    """Whether some call that was not undone froze the parameter, and none thawed it since."""
    stack = claims_on(parameter)
    return bool(stack) and not stack[-1].trainable


def is_held_by(parameter: nn.Parameter, owner: int) -> bool:
    """Whether ``owner``'s freeze of the parameter is in force: not undone, not thawed since."""
    stack = claims_on(parameter)
    index = next((i for i, claim in enumerate(stack) if claim.owner == owner), None)
    return index is not None and not any(claim.trainable for claim in stack[index:])


def _drop(parameter: nn.Parameter, stack: list[Claim], index: int) -> None:
    claim = stack.pop(index)
    if index < len(stack):
        stack[index].before = claim.before
    else:
        parameter.requires_grad_(claim.before)


def _any_freeze(claims: list[Claim]) -> bool:
    return any(not claim.trainable for claim in claims)
