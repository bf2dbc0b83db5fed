"""What is under guard, which of it is looked at when, and what a look finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from time import perf_counter

import torch
from torch import nn
from torch.optim import Optimizer

from frostline.collector import collector_paused
from frostline.freezing.modes import Pin, pin_of
from frostline.guard.events import audible
from frostline.guard.pace import Pace
from frostline.guard.roster import Roster, frozen_by_hand, is_decided
from frostline.guard.timeline import Timeline
from frostline.guard.violation import Violation
from frostline.guard.watched import Watched, watch
from frostline.guard.writers import candidate, name_writer
from frostline.naming import Alias, take_inventory
from frostline.proof import Change

# Every armed tensor is compared at every module's start and end if a whole forward then reads less
# than this, about 50 ms; else a module's own tensors are, and those that torch counted a write to.
_FORWARD_BYTES = 512 << 20
# What a comparison costs beside reading, as bytes that could be read meanwhile.
_OVERHEAD_BYTES = 40_000
# Steps for which a tensor that moved unseen is looked at closely, to catch who writes it.
_STEPS_TO_PLACE = 20


class Keeper:
    """The frozen tensors of a model, as they were, and the looks that compare them.

    Attributes:
        roster: the model's parameters as of the last refresh.
        watched: name → frozen tensor under guard.
        armed: those that are compared at every moment of the step.
        names: id of a module or parameter → canonical name.
        modules: the model's modules, each once.
        audible: those of them whose forwards can be heard.
        checks: comparisons so far.
        bytes_read: bytes read for them.
        restored: values put back.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        timeline: Timeline,
        pace: Pace,
        *,
        restore: bool,
        always_armed: bool,
    ) -> None:
        self.checks = self.bytes_read = self.restored = 0
        self.watched: dict[str, Watched] = {}
        self.armed: list[Watched] = []
        self._model = model
        self._optimizers = optimizers
        self._timeline = timeline
        self._pace = pace
        self._restore = restore
        self._always_armed = always_armed
        self._by_hand = frozen_by_hand(take_inventory(model))
        self._pins: dict[str, Pin] = {}
        self.refresh(1)

    @collector_paused()
    def refresh(self, step: int) -> None:
        """Take stock of the model anew: a freeze, a thaw or an undo moves what is under guard."""
        inventory = take_inventory(self._model)
        kept = {name: entry for name, entry in self.watched.items() if not entry.was_let_go()}
        for entry in self.watched.values():
            now = entry.now()
            # Undoing a freeze leaves frozen what was frozen before by hand; and what replaces a
            # frozen parameter (assign=True) takes over its place, though no freeze holds it.
            if isinstance(now, nn.Parameter) and (
                now is not entry.tensor or not (now.requires_grad or is_decided(now))
            ):
                self._by_hand[id(now)] = now
        self.roster = Roster(inventory, self._by_hand)
        places = {id(p.module): p.name for p in reversed(inventory.placements)}
        self.names = places | {id(p): name for name, p in self.roster.named.items()}
        self.modules = list({id(p.module): p.module for p in inventory.placements}.values())
        self.audible = audible(self._model)
        aliases = [self.roster.first[id(p)] for p in self.roster.frozen.values()]
        pins = {a.name: pin for a in inventory.buffers if (pin := _holding_pin(a)) is not None}
        aliases += [a for a in inventory.buffers if a.name in pins]
        known = {
            a.name: kept[a.name]
            for a in aliases
            if a.name in kept
            and kept[a.name].owner is a.owner
            and (kept[a.name].tensor is a.tensor or not isinstance(a.tensor, nn.Parameter))
            and self._pins.get(a.name) is pins.get(a.name)
        }
        new = {e.name: e for e in self._watch([a for a in aliases if a.name not in known], step)}
        for entry in new.values():
            # What was frozen just now is in the most danger, from what an optimizer remembers.
            # With several optimizers the second round is the first that is sure to be whole.
            entry.armed_until = step + (len(self._optimizers) > 1)
        both = known | new
        self.watched = {a.name: both[a.name] for a in aliases}
        self._nbytes = sum(entry.nbytes for entry in both.values())
        self._pins = pins
        self.arm(step)

    def arm(self, step: int) -> None:
        """Choose whom to look at closely in this step."""
        self.armed = [
            e for e in self.watched.values() if self._always_armed or e.armed_until >= step
        ]
        self._armed_of: dict[int, list[Watched]] = {}
        for entry in self.armed:
            self._armed_of.setdefault(id(entry.owner), []).append(entry)
        once = sum(e.nbytes + _OVERHEAD_BYTES for e in self.armed)
        self._all_everywhere = once * 2 * len(self.audible) <= _FORWARD_BYTES

    def whole_cost(self) -> float:
        """Seconds that comparing everything once will take."""
        return self._pace.cost(self._nbytes, len(self.watched))

    def around(self, module: nn.Module, *, outermost: bool) -> list[Watched]:
        """Whom to look at where a module's forward begins or ends."""
        if outermost or self._all_everywhere:
            return self.armed
        due = list(self._armed_of.get(id(module), ()))
        for entry in self.armed:
            if entry.owner is module:
                continue
            if entry.looks_written():
                due.append(entry)
            else:
                entry.unwritten = self._timeline.now
        return due

    def replaced(self) -> list[Watched]:
        """The parameters in whose place another object is found."""
        return [
            e
            for e in self.watched.values()
            if isinstance(e.tensor, nn.Parameter) and e.now() is not e.tensor
        ]

    def not_seen_now(self) -> list[Watched]:
        """Those that were not compared at the latest moment."""
        return [e for e in self.watched.values() if e.seen != self._timeline.now]

    def look(self, entries: Iterable[Watched], *, step: int) -> list[Violation]:
        """Compare tensors with what they held; must follow a cut of the timeline."""
        start = perf_counter()
        with torch.no_grad():
            moved = self._compare(entries, step)
            if moved and len(moved) < len(self.watched):
                # One has moved: say at once which others have.
                others = [entry for entry in self.not_seen_now() if entry not in moved]
                moved |= self._compare(others, step)
            found = [self._judge(entry, change, step) for entry, change in moved.items()]
        self._pace.spend(perf_counter() - start, at_most=2 * self.whole_cost())
        return [violation for violation in found if violation is not None]

    def _compare(self, entries: Iterable[Watched], step: int) -> dict[Watched, Change]:
        moved: dict[Watched, Change] = {}
        now, start, tensors, nbytes = self._timeline.now, perf_counter(), 0, 0
        for entry in entries:
            if self._is_in_flux(entry):
                continue
            change = entry.change()
            tensors += 1
            nbytes += entry.nbytes
            if change is not None:
                moved[entry] = change
            else:
                entry.seen, entry.seen_step = now, step
        self.checks += tensors
        self.bytes_read += nbytes
        if not moved:
            self._pace.learn(nbytes, tensors, perf_counter() - start)
        return moved

    def _is_in_flux(self, entry: Watched) -> bool:
        """Whether a pin is about to put the buffer back, as soon as its module's forward ends."""
        pin = self._pins.get(entry.name)
        return pin is not None and pin.restores and self._timeline.is_under_way(entry.owner)

    def _judge(self, entry: Watched, change: Change, step: int) -> Violation | None:
        """Name the writer, and put the value back or take the new one as it is."""
        if entry.was_let_go() or self._has_another_pin(entry):
            # Thawed, perhaps frozen again: what it held under the old freeze is no evidence.
            self._take_anew(entry, step)
            return None
        placed = self._timeline.place(entry.well_until())
        if placed is None:
            writer = candidate(entry.tensor, cause=change.cause, given=self._optimizers)
        else:
            writer = name_writer(
                entry.tensor,
                placed,
                cause=change.cause,
                names=self.names,
                given=self._optimizers,
                deaf=not self.audible,
            )
        violation = Violation(
            kind="content",
            name=entry.name,
            step=step,
            since=entry.seen_step if placed is None else None,
            change=replace(change, cause=writer.text),
            writer=writer,
        )
        if self._restore:
            entry.restore()
            entry.seen, entry.seen_step = self._timeline.now, step
            self.restored += 1
        else:
            entry = self._take_anew(entry, step) or entry
        if placed is None:
            entry.armed_until = step + _STEPS_TO_PLACE
            self.arm(step)
        return violation

    def _has_another_pin(self, entry: Watched) -> bool:
        """Whether a buffer was let go: a thaw takes its module's pin, a freeze sets a new one."""
        if entry.name not in self._pins:  # a parameter
            return False
        return _holding_pin(entry.witness.alias) is not self._pins[entry.name]

    def _take_anew(self, entry: Watched, step: int) -> Watched | None:
        now = entry.now()
        if entry.name in self._pins:
            pin = _holding_pin(entry.witness.alias)
            if pin is None:
                now = None  # it trains
            else:
                self._pins[entry.name] = pin
        if now is None:
            del self.watched[entry.name]
            self.arm(step)
            return None
        (anew,) = self._watch([entry.witness.alias._replace(tensor=now)], step)
        anew.armed_until = entry.armed_until
        self.watched[entry.name] = anew
        self.arm(step)
        return anew

    def _watch(self, aliases: Sequence[Alias], step: int) -> list[Watched]:
        moment = self._timeline.now
        return watch(aliases, keep=self._restore, moment=moment, step=step)


def _holding_pin(buffer: Alias) -> Pin | None:
    pin = pin_of(buffer.owner)
    return pin if pin is not None and pin.wish.held_buffers else None
