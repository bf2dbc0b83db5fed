"""What is done with each top-level call: recorded, proven, replayed, compared, or just made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from frostline.errors import ReplayError
from frostline.proof.traceless import Snapshot
from frostline.replay.audits import Audits
from frostline.replay.catcher import Catcher
from frostline.replay.evict import Eviction, tensors_elsewhere
from frostline.replay.frame import Frame, Irregular
from frostline.replay.kinds import Kind, key_of, plan_kind, trace_kind
from frostline.replay.own_changes import OwnChanges
from frostline.replay.plan import Plan
from frostline.replay.proving import prove_by_mixtures
from frostline.replay.readiness import Readiness
from frostline.replay.regroup import Recorded, compare, judge_output
from frostline.replay.runner import TopLevel, run_frame, try_frame
from frostline.replay.skipping import Fields
from frostline.replay.stand_in import Forward
from frostline.replay.store import Store
from frostline.replay.suitable import unsuitable
from frostline.replay.watch import State, Watch

_CHANGED_BATCHES = 8
"""Batches of known samples with other contents, one after another, that mean augmentation."""
_UNSETTLED_PASSES = 4
"""First passes of a kind after which is looked what they changed in the model's attributes."""
_KINDS_OF_PASS = 64
"""Kinds of pass (shapes, modes, settings) that are traced at most."""


class Passes:
    """Decides for each top-level call, and keeps count.

    Args:
        model: the whole model.
        store: where records go.
        audit: share of replays to compare.
        rounding: whether rounding is accepted.
    """

    def __init__(self, model: nn.Module, store: Store, *, audit: float, rounding: bool) -> None:
        self._model = model
        self._store = store
        self._audits = Audits(audit)
        self._readiness = Readiness(self._audits)
        self._watch = Watch(model)
        self._own_changes = OwnChanges(self._watch)
        self._rounding = rounding
        self._catcher = Catcher(model, self)
        self._states: dict[Any, int] = {}
        self._state: tuple[State | None, int] = (None, 0)
        self.counts: Counter[str] = Counter()
        self._kinds: dict[Any, Kind] = {}
        self._tensors: tuple[Any, ...] | None = None
        self._given_up: str | None = None
        self._ids: tuple[int, ...] = ()
        self._size: int | None = None
        self._last_of_size: dict[int, tuple[int, ...]] = {}
        self._round: set[int] = set()
        self._changed = 0
        self._moved: Counter[str] = Counter()
        self._fields = Fields()
        # Once a call took the loader's own fields, those that don't are not of its batch.
        self._is_strict = False
        self._has_changed = False
        self._earlier: list[Kind] = []
        self._eviction: Eviction | None = None

    # What others ask.

    @property
    def exact(self) -> bool:
        """Whether all replayed values had the bits of computed ones."""
        return not (self._rounding and self.counts["replayed"])

    @property
    def declined(self) -> str | None:
        """Why nothing is replayed."""
        if self._given_up is not None:
            return self._given_up
        if not self._kinds or any(kind.plan is not None for kind in self._kinds.values()):
            return None
        return next(kind.why for kind in self._kinds.values())

    @property
    def refused(self) -> Mapping[str, str]:
        """Frozen calls that are made every time → why."""
        kinds = self._kinds.values()
        return {str(place): why for kind in kinds for place, why in kind.refused.items()}

    @property
    def skipped_share(self) -> float:
        """Share of the forward time that a replayed pass leaves out."""
        plans = self._plans()
        total = sum(plan.seconds for plan in plans)
        skipped = sum(station.seconds for plan in plans for station in plan.stations)
        return min(1.0, skipped / total) if total else 0.0

    def _plans(self) -> list[Plan]:
        return [kind.plan for kind in self._kinds.values() if kind.plan is not None]

    @property
    def unneeded_fields(self) -> frozenset[str]:
        """Fields of the loader that only replayed calls would use."""
        return self._readiness.unneeded_fields

    def needs_no_inputs(self, ids: tuple[int, ...]) -> bool:
        """Whether a batch can be replayed without its unneeded fields; now and then one is not."""
        is_usual = self._given_up is None and len(ids) == self._size
        return is_usual and self._readiness.is_ready(ids)

    def evict(self) -> None:
        """Take the tensors of replayed modules out of memory until they are needed."""
        plans = [plan for plan in self._plans() if plan.proofs]
        if plans and self._eviction is None:
            glue = frozenset().union(*(plan.cut.glue_tensors for plan in plans))
            modules = [module for plan in plans for module in plan.modules]
            self._eviction = Eviction(modules, tensors_elsewhere(self._model, modules, glue))
            for kind in self._kinds.values():
                if kind.weights is not None:
                    kind.weights.trust_addresses()

    def flush(self) -> None:
        """Let other processes see what was recorded."""
        self._store.flush()

    # One batch, and one call.

    @contextmanager
    def batch(self, ids: tuple[int, ...], fields: Fields | None = None) -> Iterator[None]:
        """Take top-level calls to be made for these samples while this is open."""
        self._ids = ids
        self._fields = fields or Fields()
        if not self._round.isdisjoint(ids):
            self._round.clear()
            self._check_weights()
        self._round.update(ids)
        self._has_changed = False
        names = {name for plan in self._plans() for name in plan.names}
        try:
            with self._catcher.open(names):
                yield
        finally:
            self._notice_change()
            self._readiness.end_batch(is_usual=len(ids) == self._size)
            self._last_of_size[len(ids)] = ids
            self._ids, self._fields = (), Fields()

    def call(self, name: str, module: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Make one top-level call, or stand in for as much of it as can be."""
        call = TopLevel(
            model=self._model, name=name, module=module, forward=forward, args=args, kwargs=kwargs
        )
        state = self._watch.look()
        if state.tensors is not self._tensors and state.tensors != self._tensors:
            self._start_anew(state)
        is_of_batch = self._fields.are_in(call)
        if self._is_strict and not is_of_batch:
            return call.run()  # another batch's: an evaluation, or a second loader's
        lacks = self._fields.is_lacking(call)
        if self._given_up is not None or not self._is_regular_size():
            return self._plainly(self._fields.with_content(call) if lacks else call)
        if lacks:
            return self._by_name(call, state)
        self._is_strict |= is_of_batch
        kind = self._kind_of(call, state)
        if kind is not None:
            kind.note_paths(self._fields.paths_of(call))
        if kind is None or kind.plan is None or self._has_other_weights(kind):
            return self._plainly(call)
        output = self._with_plan(kind, kind.plan, call)
        self._settle(kind, call, state)
        return output

    def _by_name(self, call: TopLevel, state: State) -> Any:
        """Replay a pass whose inputs were not loaded; if that fails, load them after all."""
        kind = self._kinds.get(key_of(call, self._number_of(state)))
        is_known = kind is not None and all(name in kind.remembered for name in self._ids)
        if kind is None or kind.plan is None or not is_known or self._has_other_weights(kind):
            return self._plainly(self._fields.with_content(call))
        self._readiness.note(kind)
        remembered = list(zip(*(kind.remembered[name] for name in self._ids), strict=True))
        before = Snapshot(self._model, parameters=False) if kind.plan.is_risky else None
        try:
            output, _ = run_frame(
                kind.plan, call, self._ids, "replay", self._catcher, remembered=remembered
            )
        except Irregular as irregular:
            if before is not None:
                before.restore()
            self._stray(kind, irregular.why)
            return self._plainly(self._fields.with_content(call))
        self._count_replay(kind)
        self._settle(kind, call, state)
        return output

    def _number_of(self, state: State) -> int:
        """A number for the modes and settings of a state; hashing them all takes long."""
        last, number = self._state
        if state is not last:
            known = state.modes, state.settings
            number = self._states.setdefault(known, len(self._states))
            self._state = state, number
        return number

    def _start_anew(self, state: State) -> None:
        """What trains has changed, or a tensor was replaced: other cuts, other values."""
        kinds = list(self._kinds.values())
        froze_more = self._tensors is not None and _froze_more(self._tensors, state.tensors)
        self._earlier = [kind for kind in kinds if kind.plan is not None] if froze_more else []
        self._tensors = state.tensors
        self._catcher.refresh()
        self._kinds.clear()
        self._readiness.forget()
        self._changed = 0
        if self._eviction is not None:
            self._eviction.bring_back()
            self._eviction = None
        self._given_up = unsuitable(self._model)

    def _is_regular_size(self) -> bool:
        """Kernels change their last bits with the batch size, so one size is replayed.

        Another one is, if its batches hold the same samples every time (an unshuffled loader's
        last batch).
        """
        size = len(self._ids)
        if self._size is None:
            self._size = size
        return size == self._size or self._last_of_size.get(size) == self._ids

    def _plainly(self, call: TopLevel) -> Any:
        self.counts["plain"] += 1
        return call.run()

    def _kind_of(self, call: TopLevel, state: State) -> Kind | None:
        key = key_of(call, self._number_of(state))
        kind = self._kinds.get(key)
        if kind is not None:
            self._readiness.note(kind)
            return kind
        if len(set(map(id, self._kinds.values()))) >= _KINDS_OF_PASS:
            if not self.counts["replayed"]:
                self._given_up = (
                    f"no two of {_KINDS_OF_PASS} passes had the same shapes, modes and settings,"
                    " so nothing can be replayed: pad inputs to few lengths"
                )
            return None
        self._catcher.refresh()
        kind = self._kinds[key] = trace_kind(call, rounding=self._rounding)
        plan_kind(kind, call, len(self._ids), self._store)
        self._readiness.note(kind)
        return kind

    def _settle(self, kind: Kind, call: TopLevel, before: State) -> None:
        """See which plain attributes the pass itself has set; after a few passes that is known."""
        kind.passes += 1
        if kind.passes > _UNSETTLED_PASSES:
            return
        after = self._watch.look()
        if after.settings == before.settings or after.tensors != before.tensors:
            return
        is_alike, is_refused = self._own_changes.note(kind, before, after)
        if is_refused:
            plan_kind(kind, call, len(self._ids), self._store)
            kind.forget_records()
        for state in (before, after) if is_alike else (before,):
            self._kinds[key_of(call, self._number_of(state))] = kind

    # Weights.

    def _check_weights(self) -> None:
        """Once a round through the data: content, not versions."""
        for kind in self._kinds.values():
            name = kind.weights.check_content() if kind.weights is not None else None
            if name is not None:
                self._forget(name)
                return

    def _has_other_weights(self, kind: Kind) -> bool:
        name = kind.weights.changed() if kind.weights is not None else None
        if name is not None:
            self._forget(name)
        return name is not None

    def _forget(self, name: str) -> None:
        self._kinds.clear()
        self._moved[name] += 1
        if self._moved[name] > 3:
            self._given_up = (
                f"the frozen tensor {name!r} keeps changing, so nothing that was computed with it"
                " holds; frozen.verify() and fl.guard tell who writes to it"
            )

    # What is done.

    def _with_plan(self, kind: Kind, plan: Plan, call: TopLevel) -> Any:
        is_known = kind.known.issuperset(self._ids)
        is_proven = plan.proofs > 0 or (kind.has_output_proof and self._ids in kind.groupings)
        is_due = self._readiness.is_to_be_audited(self._ids)
        is_due = is_due or self._audits.is_due(kind.replayed + 1)
        if is_known and (is_due or not is_proven):
            return self._compared(kind, plan, call)
        if not is_proven:
            return self._recorded(kind, plan, call)
        return self._replayed(kind, plan, call)

    def _recorded(self, kind: Kind, plan: Plan, call: TopLevel, *, is_changed: bool = False) -> Any:
        is_to_be_proven = plan.proofs == 0 and kind.can_be_mixed
        batch = Recorded(call.kept(), self._ids) if is_to_be_proven else None
        output, frame = run_frame(
            plan, call, self._ids, "record", self._catcher, earlier=self._earlier_plan(call)
        )
        frame.commit()
        self._note(kind, frame)
        if batch is not None and frame.irregular is None:
            kind.recent.append(batch)
            if len(kind.recent) == 2:
                prove_by_mixtures(kind, len(self._ids), self._store, self._catcher)
                kind.recent = kind.recent[1:]
        self._has_changed |= is_changed
        return output

    def _earlier_plan(self, call: TopLevel) -> Plan | None:
        """A cut from before more was frozen: what it kept need not be computed again."""
        for kind in self._earlier:
            plan = kind.plan
            is_of_it = kind.graph.calls[0].place.name == call.name if kind.graph.calls else False
            if plan is not None and plan.proofs and is_of_it and plan.samples == len(self._ids):
                return plan
        return None

    def _note(self, kind: Kind, frame: Frame) -> None:
        if frame.irregular is None:
            kind.remember(self._ids, frame.keys)
            self.counts["recorded"] += 1
            kind.known.update(self._ids)
            kind.groupings.add(self._ids)
        else:
            self.counts["plain"] += 1
            self._stray(kind, frame.irregular)

    def _stray(self, kind: Kind, why: str) -> None:
        kind.strays += 1
        if kind.strays >= 3 and kind.strays > kind.replayed:
            kind.give_up(f"passes do not all go the same way: {why}")

    def _notice_change(self) -> None:
        self._changed = self._changed + 1 if self._has_changed else 0
        if self._changed >= _CHANGED_BATCHES and not self.counts["replayed"]:
            self._given_up = (
                "the inputs of known samples differ from epoch to epoch: random augmentation, or"
                " ids that do not name the same sample each time. Keep a fixed number of variants"
                " with views=K, or augment behind the frozen part"
            )

    def _replayed(self, kind: Kind, plan: Plan, call: TopLevel) -> Any:
        before = Snapshot(self._model, parameters=False) if plan.is_risky else None
        was_known = kind.known.issuperset(self._ids)
        try:
            output, frame = run_frame(plan, call, self._ids, "replay", self._catcher)
        except Irregular as irregular:
            if before is not None:
                before.restore()
            self._stray(kind, irregular.why)
            return self._plainly(call)
        frame.commit()
        if frame.mode == "record":
            self._note(kind, frame)
            self._has_changed |= was_known
        else:
            kind.remember(self._ids, frame.keys)
            self._count_replay(kind)
        return output

    def _count_replay(self, kind: Kind) -> None:
        kind.replayed += 1
        self.counts["replayed"] += 1

    def _compared(self, kind: Kind, plan: Plan, call: TopLevel) -> Any:
        """Replay for trial, compute for real, and hold the one against the other."""
        try:
            replayed, _ = try_frame(plan, call, self._ids, "try", self._catcher)
        except Irregular:
            return self._recorded(kind, plan, call, is_changed=True)
        output, frame = run_frame(plan, call, self._ids, "capture", self._catcher)
        if frame.irregular is not None:
            self._note(kind, frame)
            return output
        self.counts["compared"] += 1
        differing = compare(plan, frame.seen, kind.exclusions)
        verdict = judge_output(plan, replayed, output, kind.exclusions)
        if differing is None and verdict.holds:
            kind.has_output_proof = True
            plan.proofs += self._ids not in kind.groupings
            self._count_replay(kind)
            return output
        if kind.replayed:
            where = differing.planned.call.place if differing is not None else "the model's output"
            raise ReplayError(
                f"an audit found that what was replayed is not what is computed now: {where}"
                f" differs, after {kind.replayed} replayed batches. Something outside of the model"
                " and its inputs changed what the frozen part computes; train without replay"
            )
        if differing is None and not verdict.exclusions:
            kind.give_up(verdict.why)
        else:
            plan_kind(kind, call, len(self._ids), self._store)
            kind.forget_records()
        return output


def _froze_more(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Whether the tensors are the same, and what did not train before does not train now."""
    return len(before) == len(after) and all(
        old == new or (old[0] == new[0] and old[1] and not new[1])
        for old, new in zip(before, after, strict=True)
    )
