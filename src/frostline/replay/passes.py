"""What is done with each top-level call: recorded, proven, replayed, compared, or just made."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from frostline.errors import ReplayError
from frostline.proof.traceless import Snapshot
from frostline.replay.catcher import Catcher
from frostline.replay.frame import Irregular
from frostline.replay.kinds import ROUNDS, Kind, key_of, plan_kind, trace_kind
from frostline.replay.plan import Plan
from frostline.replay.regroup import Recorded, compare, judge_output, mixed, prove
from frostline.replay.runner import TopLevel, run_frame, try_frame
from frostline.replay.stand_in import Forward
from frostline.replay.store import Store
from frostline.replay.suitable import unsuitable
from frostline.replay.watch import State, Watch, changed_settings

_CHANGED_BATCHES = 8
"""Batches of known samples with other contents, one after another, that mean augmentation."""
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
        self._audit = audit
        self._rounding = rounding
        self._catcher = Catcher(model, self)
        self._watch = Watch(model)
        # Of its own, so that the loop's random numbers are the same with and without replay.
        self._random = random.Random(0)
        self.counts: Counter[str] = Counter()
        self._kinds: dict[Any, Kind] = {}
        self._tensors: tuple[Any, ...] | None = None
        self._given_up: str | None = None
        self._ids: tuple[int, ...] = ()
        self._size: int | None = None
        self._last_of_size: dict[int, tuple[int, ...]] = {}
        self._round: set[int] = set()
        self._changed = 0
        self._ignored: set[tuple[int, str]] = set()
        self._own_changes: Counter[tuple[int, str]] = Counter()
        self._moved: Counter[str] = Counter()

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

    # One batch, and one call.

    @contextmanager
    def batch(self, ids: tuple[int, ...]) -> Iterator[None]:
        """Take top-level calls to be made for these samples while this is open."""
        self._ids = ids
        if not self._round.isdisjoint(ids):
            self._round.clear()
            self._check_weights()
        self._round.update(ids)
        names = {name for plan in self._plans() for name in plan.names}
        try:
            with self._catcher.open(names):
                yield
        finally:
            self._last_of_size[len(ids)] = ids
            self._ids = ()

    def call(self, name: str, module: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Make one top-level call, or stand in for as much of it as can be."""
        call = TopLevel(
            model=self._model, name=name, module=module, forward=forward, args=args, kwargs=kwargs
        )
        state = self._watch.look()
        if state.tensors != self._tensors:
            self._start_anew(state)
        if self._given_up is not None or not self._is_regular_size():
            return self._plainly(call)
        kind = self._kind_of(call, state)
        if kind is None or kind.plan is None or self._has_other_weights(kind):
            return self._plainly(call)
        output = self._with_plan(kind, kind.plan, call)
        self._settle(kind, call, state)
        return output

    def _start_anew(self, state: State) -> None:
        """What trains has changed, or a tensor was replaced: other cuts, other values."""
        self._tensors = state.tensors
        self._kinds.clear()
        self._changed = 0
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
        key = key_of(call, state, self._ignored)
        kind = self._kinds.get(key)
        if kind is not None:
            return kind
        if len(set(map(id, self._kinds.values()))) >= _KINDS_OF_PASS:
            if not self.counts["replayed"]:
                self._given_up = (
                    f"no two of {_KINDS_OF_PASS} passes had the same shapes, modes and settings,"
                    " so nothing can be replayed: pad inputs to few lengths"
                )
            return None
        kind = self._kinds[key] = trace_kind(call, rounding=self._rounding)
        plan_kind(kind, call, len(self._ids), self._store)
        return kind

    def _settle(self, kind: Kind, call: TopLevel, before: State) -> None:
        """A pass may set plain attributes of its modules: once, as it caches something, or always."""
        after = self._watch.look()
        if after.settings == before.settings or after.tensors != before.tensors:
            return
        for setting in changed_settings(before, after):
            name = setting.owner, setting.name
            self._own_changes[name] += 1
            if self._own_changes[name] > 1 and not self._refuse_counting(kind, call, setting):
                self._ignored.add(name)
        for state in (before, after):
            self._kinds[key_of(call, state, self._ignored)] = kind

    def _refuse_counting(self, kind: Kind, call: TopLevel, setting: Any) -> bool:
        """Whether a planned call changes its own attribute each time; then it is made each time."""
        for station in kind.plan.stations if kind.plan is not None else ():
            if any(id(module) == setting.owner for module in station.planned.call.module.modules()):
                why = f"its attribute {setting.name!r} changes every time it runs"
                for index, inner in enumerate(kind.graph.calls):
                    if id(inner.module) == setting.owner:
                        inner.effect = why
                plan_kind(kind, call, len(self._ids), self._store)
                kind.known.clear()
                kind.groupings.clear()
                return True
        return False

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
        if is_known and (not is_proven or self._is_due(kind)):
            return self._compared(kind, plan, call)
        if not is_proven:
            return self._recorded(kind, plan, call)
        return self._replayed(kind, plan, call)

    def _is_due(self, kind: Kind) -> bool:
        """Whether the next replay is to be compared: the 1st, 8th, 64th …, and a share of all."""
        number = kind.replayed + 1
        while number % 8 == 0:
            number //= 8
        return number == 1 or (self._audit > 0 and self._random.random() < self._audit)

    def _recorded(
        self, kind: Kind, plan: Plan, call: TopLevel, *, is_changed: bool = False
    ) -> Any:
        batch = Recorded(call.kept(), self._ids) if plan.proofs == 0 else None
        output, frame = run_frame(plan, call, self._ids, "record", self._catcher)
        frame.commit()
        self._note(kind, frame.irregular)
        if batch is not None and frame.irregular is None:
            kind.recent.append(batch)
            if len(kind.recent) == 2:
                self._try_mixture(kind)
        self._notice_change(is_changed)
        return output

    def _note(self, kind: Kind, irregular: str | None) -> None:
        if irregular is None:
            self.counts["recorded"] += 1
            kind.known.update(self._ids)
            kind.groupings.add(self._ids)
        else:
            self.counts["plain"] += 1
            self._stray(kind, irregular)

    def _stray(self, kind: Kind, why: str) -> None:
        kind.strays += 1
        if kind.strays >= 3 and kind.strays > kind.replayed:
            kind.give_up(f"passes do not all go the same way: {why}")

    def _notice_change(self, is_changed: bool) -> None:
        self._changed = self._changed + 1 if is_changed else 0
        if self._changed >= _CHANGED_BATCHES and not self.counts["replayed"]:
            self._given_up = (
                "the inputs of known samples differ from epoch to epoch: random augmentation, or"
                " ids that do not name the same sample each time. Keep a fixed number of variants"
                " with views=K, or augment behind the frozen part"
            )

    def _try_mixture(self, kind: Kind) -> None:
        """Prove that values do not depend on the batch around them; cut anew until they don't."""
        for _ in range(ROUNDS):
            batch = mixed(*kind.recent)
            if kind.plan is None or batch is None:
                break
            try:
                verdict = prove(kind.plan, batch, kind.exclusions, self._catcher)
            except Exception:
                break  # a mixture need not be a valid batch; then the first replay is compared
            if verdict.holds:
                kind.plan.proofs += 1
                break
            if not verdict.exclusions:
                kind.give_up(verdict.why)
                break
            plan_kind(kind, batch.call, len(self._ids), self._store)
            self._record_again(kind)
        kind.recent = kind.recent[1:]

    def _record_again(self, kind: Kind) -> None:
        for recorded in kind.recent if kind.plan is not None else ():
            assert kind.plan is not None
            _, frame = try_frame(kind.plan, recorded.call, recorded.ids, "record", self._catcher)
            frame.commit()

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
            self._note(kind, frame.irregular)
            self._notice_change(was_known)
        else:
            self._count_replay(kind)
        return output

    def _count_replay(self, kind: Kind) -> None:
        kind.replayed += 1
        self._changed = 0
        self.counts["replayed"] += 1

    def _compared(self, kind: Kind, plan: Plan, call: TopLevel) -> Any:
        """Replay for trial, compute for real, and hold the one against the other."""
        try:
            replayed, _ = try_frame(plan, call, self._ids, "try", self._catcher)
        except Irregular:
            return self._recorded(kind, plan, call, is_changed=True)
        output, frame = run_frame(plan, call, self._ids, "capture", self._catcher)
        if frame.irregular is not None:
            self._note(kind, frame.irregular)
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
            kind.known.clear()
        return output
