"""What a schedule froze, who proves it, and the one way to change it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from frostline.errors import FrostlineError
from frostline.freezing import Frozen, Plan, Rule, freeze
from frostline.freezing.flags import note_thaw
from frostline.freezing.modes import pin_of
from frostline.naming import take_inventory, walk_modules
from frostline.optim import SyncReport, sync
from frostline.proof import Proof
from frostline.schedules import Layout
from frostline.selection import Selector, where


class Holder:
    """Holds some units of a model frozen, the others trainable, and the optimizer in step.

    Every transition is one freeze of what freezes and thaws in it, so it happens as a whole or
    not at all. A handle lives as long as it has the last word on a unit; then it is undone, so
    that a schedule with thousands of transitions leaves no more behind than one with two.

    Args:
        model: the model, unwrapped from data parallelism.
        layout: its units.
        optimizer: the optimizer that trains it.
        scheduler: its learning-rate scheduler, if there is one.
        moments: whether frozen parameters keep their optimizer state.

    Attributes:
        trains: names of the units that train; None before the first transition.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        optimizer: Optimizer,
        scheduler: object,
        *,
        moments: Literal["fresh", "keep"],
    ) -> None:
        self.trains: frozenset[str] | None = None
        self._model = model
        self._layout = layout
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._moments = moments
        self._base: Frozen | None = None
        self._owners: dict[str, Frozen] = {}
        self._mode_when_pinned: dict[int, bool] = {}

    @property
    def handles(self) -> tuple[Frozen, ...]:
        """The handles that hold something frozen, oldest first."""
        unique = dict.fromkeys(self._owners.values())
        return tuple(handle for handle in unique if handle.names)

    def prove(self, train: frozenset[str]) -> None:
        """Compare what is about to thaw with what it was when it froze.

        Args:
            train: names of the units that are to train.

        Raises:
            FrozenChangedError: some of it had moved while it was frozen.
        """
        thawing = train - (self.trains or frozenset())
        for handle in dict.fromkeys(self._owners[u] for u in thawing if u in self._owners):
            if handle.names:
                handle.verify()

    def move(self, train: frozenset[str]) -> SyncReport:
        """Train these units and freeze the others.

        Args:
            train: names of units, at least one.

        Raises:
            FrostlineError: a part can't be frozen, or the optimizer refuses a parameter. Nothing
                has changed then, but that used gradients are dropped.
        """
        names = self._layout.names
        now = names if self.trains is None else self.trains
        freezing, thawing = now - train, train - now
        # Whatever was frozen by hand before belongs to the schedule now; undo brings it back.
        fresh_base = self._base is None
        if self._base is None:
            rules = [Rule(action="train", select=self._selector(names))]
            self._base = freeze(self._model, Plan(rules=rules), gradients="drop", everything=True)
        pinned = self._pinned()
        moved = self._change(freezing, thawing)
        try:
            report = self._sync()
        except FrostlineError:
            if moved is not None:
                moved.undo()
            if fresh_base:
                self.release()
            raise
        self.trains = train
        self._note(train)
        if moved is not None:
            self._hand_over(moved, freezing | thawing)
        self._follow_mode(pinned)
        return report

    def verify(self) -> Proof:
        """Prove that all that is frozen now is bitwise what it was; raises FrozenChangedError."""
        proofs = [handle.verify() for handle in self.handles]
        buffers = {name for handle in self.handles for name in handle.buffers}
        return Proof(
            parameters=sum(proof.parameters for proof in proofs),
            buffers=len(buffers),
            bytes=sum(proof.bytes for proof in proofs),
            seconds=sum(proof.seconds for proof in proofs),
        )

    def fingerprints(self) -> dict[str, str]:
        """Name → fingerprint of every frozen parameter and buffer, as it is now."""
        found: dict[str, str] = {}
        for handle in self.handles:
            found |= handle.fingerprints()
        return found

    def mark_kept(self) -> None:
        """After optimizer state was loaded: note whose state is kept on purpose."""
        if self._moments == "keep":
            self._sync()

    def release(self) -> None:
        """Undo everything: flags and modes are as they were before the first transition."""
        for handle in reversed(tuple(dict.fromkeys(self._owners.values()))):
            handle.undo()
        if self._base is not None:
            self._base.undo()
        self._owners, self._base, self.trains = {}, None, None

    def _sync(self) -> SyncReport:
        return sync(
            self._model,
            self._optimizer,
            self._scheduler,
            state=self._moments,
            gradients="drop",
        )

    def _change(self, freezing: frozenset[str], thawing: frozenset[str]) -> Frozen | None:
        rules = []
        if freezing:
            rules.append(Rule(action="freeze", select=self._selector(freezing)))
        if thawing:
            rules.append(Rule(action="train", select=self._selector(thawing)))
        if not rules:
            return None
        return freeze(self._model, Plan(rules=rules), gradients="drop", everything=True)

    def _hand_over(self, handle: Frozen, units: Iterable[str]) -> None:
        before = tuple(dict.fromkeys(self._owners.values()))
        self._owners |= dict.fromkeys(units, handle)
        standing = set(map(id, self._owners.values()))
        for old in before:
            if id(old) not in standing:
                old.undo()

    def _note(self, train: frozenset[str]) -> None:
        """A delta checkpoint has to hold these, also once they are frozen again."""
        units = (unit for unit in self._layout.units if unit.name in train)
        names = {name for unit in units for name in unit.parameters}
        for group in take_inventory(self._model).groups:
            for name, parameter in group.named.items():
                if name in names:
                    note_thaw(parameter)

    def _selector(self, units: Iterable[str]) -> Selector:
        wanted = set(units)
        names = {name for u in self._layout.units if u.name in wanted for name in u.parameters}
        return where(lambda name, _: name in names)

    def _pinned(self) -> dict[int, nn.Module]:
        modules = (module for _, module in walk_modules(self._model))
        return {id(module): module for module in modules if pin_of(module) is not None}

    def _follow_mode(self, before: dict[int, nn.Module]) -> None:
        """Modules that thawed take the model's present mode, unless they were set apart from it.

        What froze at an epoch's end, while the model was in eval mode for the validation, must
        not wake up in eval mode in the middle of the next epoch.
        """
        now = self._pinned()
        for key, module in before.items():
            was = self._mode_when_pinned.pop(key, None) if key not in now else None
            if was is not None and was == module.training:
                module.training = self._model.training
        for key in now.keys() - before.keys():
            self._mode_when_pinned[key] = self._model.training
