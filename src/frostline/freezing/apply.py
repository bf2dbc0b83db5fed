"""Freeze and unfreeze: the two calls that most people need."""

from __future__ import annotations

from torch import nn

from frostline.collector import collector_paused
from frostline.errors import PlanError
from frostline.freezing.boundary import PendingGradients, settle_gradients
from frostline.freezing.decide import decide, live_groups, refuse_nothing_to_train
from frostline.freezing.drift import refuse_drift
from frostline.freezing.flags import NO_WISH, Wish
from frostline.freezing.frozen import Frozen, follow_shards
from frostline.freezing.plan import Plan
from frostline.freezing.special import (
    flattening_explained,
    refuse_lazy,
    refuse_observing,
    refuse_renormalised,
)
from frostline.naming import take_inventory
from frostline.selection import Selector, SelectorLike, as_selector


def freeze(
    model: nn.Module,
    what: SelectorLike | Plan | None = None,
    *,
    all_but: SelectorLike | None = None,
    gradients: PendingGradients = "refuse",
    pin_eval: bool | SelectorLike = True,
    hold_statistics: bool = True,
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
        pin_eval: False leaves the modes of frozen modules to you. A selector pins, besides the
            frozen modules, those that hold what it selects, though they train:
            ``"type:BatchNorm2d"`` for trainable scales over resting statistics.
        hold_statistics: False lets go of the buffers of frozen modules: they may move, and are
            not part of the proof. With ``pin_eval=False`` alone, a frozen module may run in train
            mode, and its buffers are put back, bit for bit, after each forward.
        everything: True permits that no trainable parameter is left (a teacher network).

    Returns:
        The handle: names, proof, undo. It may be dropped; the freeze stays.

    Raises:
        SelectorError: (a ValueError) a selector matches nothing or is malformed.
        PlanError: (a ValueError) rules are at odds about a tied tensor; nothing is left to train;
            a module would rewrite what is to be frozen (``max_norm``, an active observer).
        TransitionError: (a RuntimeError) gradients are pending, or a plan thaws what
            :func:`unfreeze` would refuse.
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
    wish = Wish(eval_mode=pin_eval is not False, held_buffers=hold_statistics)
    also_pinned = None if isinstance(pin_eval, bool) else as_selector(pin_eval)
    return _transition(
        model, plan, gradients, wish=wish, also_pinned=also_pinned, everything=everything
    )


def unfreeze(
    model: nn.Module,
    what: SelectorLike,
    *,
    gradients: PendingGradients = "refuse",
) -> Frozen:
    """Make parameters trainable again, and let modules that are no longer frozen train.

    Rows that :func:`frostline.freeze_rows` holds are let go as well. An optimizer that does not
    hold the parameters trains nothing: declare them from the start
    (``fl.optimizer(..., declare_all=True)``) or build a new one.

    Args:
        model: the model, wrapped or not.
        what: what to thaw: a selector, or several.
        gradients: in the middle of a step, with gradients pending: ``refuse``, or ``drop`` them.

    Returns:
        A handle of which ``undo()`` freezes again exactly what this thawed.

    Raises:
        SelectorError: (a ValueError) the selector matches nothing or is malformed.
        TransitionError: (a RuntimeError) gradients are pending; or the model is under a
            DistributedDataParallel, on several ranks, that would not average what thaws.

    >>> import frostline as fl
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> frozen = fl.freeze(model, "0")
    >>> thawed = fl.unfreeze(model, "0.bias")
    >>> frozen.names, model[0].bias.requires_grad
    (('0.weight',), True)
    """
    return _transition(model, Plan.training(what), gradients, everything=True, lifts_rows=True)


@collector_paused()
def _transition(
    model: nn.Module,
    plan: Plan,
    gradients: PendingGradients,
    *,
    wish: Wish = NO_WISH,
    also_pinned: Selector | None = None,
    everything: bool,
    lifts_rows: bool = False,
) -> Frozen:
    """Check everything first, so that a refusal leaves the model as it was."""
    follow_shards(model)
    inventory = take_inventory(model)
    with flattening_explained(inventory):
        decisions = decide(plan, inventory)
    pinned = sorted(also_pinned.find(inventory)) if also_pinned is not None else ()
    refuse_lazy(inventory.groups[index] for index in decisions)
    refuse_renormalised(
        inventory.groups[index] for index, action in decisions.items() if action == "freeze"
    )
    if not everything:
        refuse_nothing_to_train(model, inventory, decisions)
    if wish.held_buffers:
        refuse_observing(inventory, live_groups(inventory, decisions))
    refuse_drift(model, (inventory.groups[i] for i, act in decisions.items() if act == "train"))
    settle_gradients(inventory, gradients)
    return Frozen(
        model, plan, inventory, decisions, wish=wish, also_pinned=pinned, lifts_rows=lifts_rows
    )


def _given(all_but: SelectorLike | None) -> SelectorLike:
    assert all_but is not None
    return all_but
