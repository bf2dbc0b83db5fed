"""Freeze and unfreeze: the two calls that most people need."""

from __future__ import annotations

from torch import nn

from frostline.collector import collector_paused
from frostline.errors import PlanError
from frostline.freezing.boundary import PendingGradients, settle_gradients
from frostline.freezing.decide import decide, refuse_lazy, refuse_nothing_to_train
from frostline.freezing.frozen import Frozen
from frostline.freezing.plan import Plan
from frostline.naming import take_inventory
from frostline.selection import SelectorLike


def freeze(
    model: nn.Module,
    what: SelectorLike | Plan | None = None,
    *,
    all_but: SelectorLike | None = None,
    gradients: PendingGradients = "refuse",
    pin_eval: bool = True,
    everything: bool = False,
) -> Frozen:
    """Freeze parameters, and the modules that hold nothing else, until undone.

    Frozen parameters get ``requires_grad=False`` and lose their gradient. A module whose
    parameters are all frozen runs in eval mode from now on, so BatchNorm statistics stand still
    and dropout is off, whatever ``model.train()`` says. Build the optimizer afterwards, with
    :func:`frostline.optimizer`.

    Args:
        model: the model, wrapped or not, on any device.
        what: what to freeze: a selector, several, or a :class:`Plan`.
        all_but: freeze everything except this, which trains. Instead of ``what``.
        gradients: in the middle of a step, with gradients pending: ``refuse``, or ``drop`` them.
        pin_eval: False leaves the modes of frozen modules to you.
        everything: True permits that no trainable parameter is left (a teacher network).

    Returns:
        The handle: names, proof, undo. It may be dropped; the freeze stays.

    Raises:
        SelectorError: (a ValueError) a selector matches nothing or is malformed.
        PlanError: (a ValueError) rules are at odds about a tied tensor; nothing is left to train.
        TransitionError: (a RuntimeError) gradients are pending.
        In each case nothing has changed.

    >>> import frostline as fl
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    >>> frozen = fl.freeze(model, all_but="2")
    >>> frozen.names, frozen.buffers[0]
    (('0.weight', '0.bias', '1.weight', '1.bias'), '1.running_mean')
    """
    if (what is None) == (all_but is None):
        raise PlanError(
            "freeze takes either what to freeze or all_but=…, and one of them must be given:"
            " fl.freeze(model, 'backbone') or fl.freeze(model, all_but='head')"
        )
    if isinstance(what, Plan):
        plan = what
    else:
        plan = Plan.freezing(what) if what is not None else Plan.all_but(_given(all_but))
    return _transition(model, plan, gradients, pin_eval, everything)


def unfreeze(
    model: nn.Module,
    what: SelectorLike,
    *,
    gradients: PendingGradients = "refuse",
) -> Frozen:
    """Make parameters trainable again, and let modules that are no longer frozen train.

    An optimizer that does not hold them trains nothing: declare them from the start
    (``fl.optimizer(..., declare_all=True)``) or build a new one.

    Args:
        model: the model, wrapped or not.
        what: what to thaw: a selector, or several.
        gradients: in the middle of a step, with gradients pending: ``refuse``, or ``drop`` them.

    Returns:
        A handle of which ``undo()`` freezes again exactly what this thawed.

    Raises:
        SelectorError: (a ValueError) the selector matches nothing or is malformed.
        TransitionError: (a RuntimeError) gradients are pending.

    >>> import frostline as fl
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> frozen = fl.freeze(model, "0")
    >>> thawed = fl.unfreeze(model, "0.bias")
    >>> frozen.names, model[0].bias.requires_grad
    (('0.weight',), True)
    """
    return _transition(model, Plan.training(what), gradients, True, True)


@collector_paused()
def _transition(
    model: nn.Module,
    plan: Plan,
    gradients: PendingGradients,
    pin_eval: bool,
    everything: bool,
) -> Frozen:
    """Check everything first, so that a refusal leaves the model as it was."""
    inventory = take_inventory(model)
    decisions = decide(plan, inventory)
    refuse_lazy([inventory.groups[index] for index in decisions])
    if not everything:
        refuse_nothing_to_train(model, inventory, decisions)
    settle_gradients(inventory, gradients)
    return Frozen(model, plan, inventory, decisions, pin_eval=pin_eval)


def _given(all_but: SelectorLike | None) -> SelectorLike:
    assert all_but is not None
    return all_but
