"""The handle that a freeze returns: what it froze, its proof, and its undo."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from frostline.collector import collector_paused
from frostline.errors import TransitionError
from frostline.freezing.drift import refuse_drift
from frostline.freezing.flags import (
    NO_WISH,
    Wish,
    hand_on,
    is_held_by,
    lay_claim,
    release_claims,
    would_train,
)
from frostline.freezing.following import keep_orphaned_pins, shards_of
from frostline.freezing.lifting import Lifted, lift_rows
from frostline.freezing.modes import Pin, pin_of
from frostline.freezing.plan import Action, Plan
from frostline.freezing.standing import settle_modes
from frostline.freezing.table import freeze_table
from frostline.naming import Inventory, TensorGroup
from frostline.proof import Evidence, Proof
from frostline.shards import note_trainable

_tokens = itertools.count(1)
# Every handle that may still be asked for a proof. Weak: a dropped handle leaves its freeze in
# force and keeps no model alive.
_handles: weakref.WeakValueDictionary[int, Frozen] = weakref.WeakValueDictionary()


class Frozen:
    """One freeze (or thaw) of a model: its names, its proof and its undo.

    Returned by :func:`frostline.freeze` and :func:`frostline.unfreeze`; usable as a context
    manager, which undoes it on exit. Dropping the handle leaves the freeze in force.

    Attributes:
        plan: the rules that were applied.
        model: the model that was given.
        wish: what the call wants of the modules that are frozen.
        repairs: after a resume with ``repair=True``, the names that were mapped.

    >>> import frostline as fl
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> with fl.freeze(model, "0") as frozen:
    ...     frozen.names
    ('0.weight', '0.bias')
    >>> model[0].weight.requires_grad
    True
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        inventory: Inventory,
        decisions: dict[int, Action],
        *,
        wish: Wish = NO_WISH,
        also_pinned: Iterable[int] = (),
        lifts_rows: bool = False,
    ) -> None:
        self.plan = plan
        self.model = model
        self.wish = wish
        self.repairs: tuple[str, ...] = ()
        self._token = next(_tokens)
        self._frozen = _groups(inventory, decisions, "freeze")
        self._trained = _groups(inventory, decisions, "train")
        self._also_pinned = tuple(inventory.groups[index] for index in also_pinned)
        self._buffers = inventory.buffers
        self._evidence = Evidence(model)
        self._pins: dict[str, Pin | None] = {}
        self._modes_before = [(placed.module, placed.module.training) for placed in inventory[0]]
        self._lifted: Lifted | None = None
        self._undone = False
        self._apply()
        if lifts_rows:
            self._lifted = lift_rows(self._trained)
        _handles[self._token] = self
        _settle_all()

    def _apply(self) -> None:
        """Set flags and modes; if one parameter refuses, nothing has changed."""
        claims: tuple[tuple[tuple[TensorGroup, ...], bool | None, Wish], ...] = (
            (self._frozen, False, self.wish),
            (self._trained, True, NO_WISH),
            (self._also_pinned, None, self.wish),
        )
        try:
            for groups, trainable, wish in claims:
                for group in groups:
                    for parameter in group.named.values():
                        lay_claim(parameter, self._token, trainable=trainable, wish=wish)
        except RuntimeError:
            self._release()
            raise
        for group in self._frozen:
            for parameter in group.named.values():
                parameter.grad = None
        settle_modes(self.model)
        note_trainable(self.model)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters that this call froze and still holds frozen."""
        return self._evidence.names("parameter")

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers in modules that are frozen, which the proof covers too."""
        return self._evidence.names("buffer")

    @property
    def pinned_besides(self) -> tuple[str, ...]:
        """Names of the parameters whose modules are pinned though they may train."""
        return tuple(name for group in self._also_pinned for name in group.named)

    def verify(self) -> Proof:
        """Prove that every frozen parameter and buffer is bitwise what it was when frozen.

        Reads all of it once, at memory speed. Call it whenever you like; it changes nothing.

        Raises:
            FrozenChangedError: (a RuntimeError) names each tensor that moved, how many elements,
                by how much at most, and the likely cause. ``.changes`` has them as objects.
            TransitionError: (a RuntimeError) this handle holds nothing frozen (any more), so
                there is nothing to prove.
        """
        follow_shards(self.model)
        if not self._evidence:
            why = "it was undone or thawed" if self._frozen else "it froze nothing"
            raise TransitionError(f"nothing to verify: {why}; verify before undo() or unfreeze()")
        return self._evidence.verify()

    def fingerprints(self) -> dict[str, str]:
        """Name → fingerprint of each frozen tensor as it is now, to compare across processes."""
        follow_shards(self.model)
        return self._evidence.fingerprints()

    def state_dict(self) -> dict[str, Any]:
        """This freeze, by name, for :func:`frostline.resume_freeze`.

        The plan, every parameter's shape and flag, the fingerprint of what is held frozen, and
        the pinned modules. Plain types alone: it goes into JSON, and into a checkpoint that
        ``torch.load`` reads with ``weights_only=True``.
        """
        from frostline.freezing.resume import freeze_state  # it builds handles itself

        return freeze_state(self)

    @collector_paused()
    def undo(self) -> None:
        """Restore flags, modes and hooks exactly as they were before this call; once.

        Calls made since, and not undone, stay in force. Gradients that were dropped are gone.

        Raises:
            TransitionError: (a RuntimeError) as from :func:`frostline.unfreeze`, where what this
                froze would thaw under a DistributedDataParallel. Nothing has changed.
        """
        if self._undone:
            return
        follow_shards(self.model)
        refuse_drift(self.model, filter(self._would_thaw, self._frozen))
        self._undone = True
        del _handles[self._token]
        later = [h for h in _handles.values() if h.model is self.model and h._token > self._token]
        self._release()
        if self._lifted is not None:
            self._lifted.put_down()
        settle_modes(self.model)
        note_trainable(self.model)
        if not later:
            # A pinned module runs in eval mode whatever its flag says; the flag may have been
            # set by train() since, and is put back all the same.
            for module, mode in self._modes_before:
                if pin_of(module) is not None:
                    module.training = mode
        self._settle()
        _settle_all()

    def _would_thaw(self, group: TensorGroup) -> bool:
        return any(would_train(parameter, self._token) for parameter in group.named.values())

    def _release(self) -> None:
        for group in (*self._frozen, *self._trained, *self._also_pinned):
            for parameter in group.named.values():
                release_claims(parameter, self._token)
                if not parameter.requires_grad:
                    parameter.grad = None

    def _follow(self) -> None:
        """Go over to the shards of those of its parameters that were sharded since."""
        kinds = (self._frozen, self._trained, self._also_pinned)
        shards = shards_of(self.model, (a for kind in kinds for g in kind for a in g.aliases))
        if not shards:
            return
        for group in (group for kind in kinds for group in kind):
            for parameter in group.named.values():
                if id(parameter) in shards:
                    hand_on(parameter, shards[id(parameter)])
        self._evidence.follow(shards)
        self._frozen, self._trained, self._also_pinned = (
            tuple(_with_shards(group, shards) for group in kind) for kind in kinds
        )

    def _settle(self) -> None:
        """Keep evidence for exactly what this call holds frozen now."""
        parameters = [
            alias
            for group in self._frozen
            for alias in group.firsts
            if is_held_by(alias.tensor, self._token)  # type: ignore[arg-type]  # a parameter
        ]
        pins = {a.name: pin_of(a.owner) for a in self._buffers} if parameters else {}
        buffers = [a for a in self._buffers if _holds_buffers(pins.get(a.name))]
        # A module that was thawed and frozen again has a new pin: what its buffers held under
        # the old one is no evidence any more.
        self._evidence.forget(name for name, pin in self._pins.items() if pins.get(name) is not pin)
        self._evidence.cover([*parameters, *buffers])
        self._pins = pins

    def __enter__(self) -> Frozen:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __str__(self) -> str:
        return freeze_table(self.model)

    def __repr__(self) -> str:
        state = "undone" if self._undone else f"{len(self.names)} parameters held"
        return f"<Frozen '{self.plan}': {state}>"


def follow_shards(model: nn.Module) -> None:
    """Before anything else is done: the freezes of a model hold for what it was sharded into.

    A collective where something was sharded since the last call; nothing where not.
    """
    for handle in sorted(_handles.values(), key=lambda handle: handle._token):
        if handle.model is model:
            handle._follow()
    keep_orphaned_pins(model)


def _with_shards(group: TensorGroup, shards: dict[int, nn.Parameter]) -> TensorGroup:
    return TensorGroup(
        tuple(a._replace(tensor=shards.get(id(a.tensor), a.tensor)) for a in group.aliases)
    )


def _groups(
    inventory: Inventory, decisions: dict[int, Action], action: Action
) -> tuple[TensorGroup, ...]:
    chosen = sorted(index for index, decided in decisions.items() if decided == action)
    return tuple(inventory.groups[index] for index in chosen)


def _holds_buffers(pin: Pin | None) -> bool:
    return pin is not None and pin.wish.held_buffers


def _settle_all() -> None:
    """Any transition may end, or bring back, what another handle holds."""
    for handle in list(_handles.values()):
        handle._settle()
