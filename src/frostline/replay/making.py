"""One pass of a kind that has a plan: recorded, replayed, or both and compared."""

from __future__ import annotations

from collections import Counter
from typing import Any, NoReturn

from frostline.errors import ReplayError
from frostline.proof.traceless import Snapshot
from frostline.replay.audits import Audits
from frostline.replay.captured import Captured
from frostline.replay.catcher import Catcher
from frostline.replay.earlier import has_all_reads, read_too_little
from frostline.replay.first_pass import first_pass, take_times
from frostline.replay.frame import Frame, Irregular, Unknown
from frostline.replay.in_step import InStep, Way
from frostline.replay.kind_table import KindTable
from frostline.replay.kinds import Kind, plan_kind
from frostline.replay.plan import Plan
from frostline.replay.poison import explained, reads_poison
from frostline.replay.proving import prove_by_mixtures
from frostline.replay.regroup import (
    Recorded,
    are_recorded,
    compare,
    exclude_chosen,
    judge_output,
)
from frostline.replay.runner import TopLevel, run_frame, try_frame
from frostline.replay.store import Store


class Making:
    """Makes passes, and keeps count.

    Args:
        table: the kinds of pass.
        store: where records go.
        catcher: catches the calls of planned modules.
        audits: says which replays are compared.

    Attributes:
        counts: passes recorded, replayed, plain and compared.
        since_check: passes replayed since the frozen tensors' contents were looked at.
        has_changed: whether a pass of the batch had known samples with other contents.
        has_rounded: whether a pass was replayed of which the last bits may have differed.
    """

    def __init__(self, table: KindTable, store: Store, catcher: Catcher, audits: Audits) -> None:
        self.counts: Counter[str] = Counter()
        self.since_check = 0
        self.has_changed = False
        self.has_rounded = False
        self._without_inputs = 0
        self._table = table
        self._store = store
        self._catcher = catcher
        self._audits = audits

    def plainly(self, call: TopLevel) -> Any:
        """Make a call as ever."""
        self.counts["plain"] += 1
        return call.run()

    def needs(self, kind: Kind, call: TopLevel, ids: tuple[int, ...], steps: InStep) -> Way:
        """How a call has to be made by the ranks of a sharded model, as far as this one knows."""
        plan = kind.plan
        if plan is None:
            return Way.COMPUTE
        if not plan.proofs:
            return Way.FREELY
        if not kind.known.issuperset(ids):
            return Way.COMPUTE
        if not steps.brings_what_was_recorded(kind, call, ids):
            self.has_changed = True
            return Way.COMPUTE
        if not _are_found(kind, plan, ids):
            return Way.COMPUTE
        return Way.FREELY if self._audits.is_due(kind.replayed + 1) else Way.REPLAY

    def make(
        self,
        kind: Kind,
        plan: Plan,
        call: TopLevel,
        ids: tuple[int, ...],
        *,
        is_reloaded: bool,
        captured: Captured | None,
    ) -> Any:
        """Make a call, or stand in for as much of it as can be.

        Args:
            kind: its kind.
            plan: the kind's plan.
            call: the call.
            ids: the samples.
            is_reloaded: whether the inputs were loaded although they could have been skipped, to
                be compared.
            captured: what was traced of just this call, if it was traced just now.

        Raises:
            ReplayError: an audit found that what was replayed is not what is computed.
        """
        if captured is not None:
            batch = self._to_be_mixed(kind, plan, call, ids)
            made = first_pass(plan, call, ids, self._catcher, captured)
            if made is not None:
                output, frame = made
                self._took_first(kind, plan, call, ids, frame, batch)
                return output
        is_known = kind.known.issuperset(ids)
        is_proven = plan.proofs > 0 or (kind.has_output_proof and ids in kind.groupings)
        is_due = is_reloaded or self._audits.is_due(
            kind.replayed + 1, of_earlier_run=kind.is_of_earlier_run
        )
        # Of an earlier run's proof only the values are certain, not what this loop does with them.
        is_first = is_proven and not kind.known and not kind.has_output_proof
        may_be_known = is_known or kind.is_of_earlier_run
        if is_first or (is_due and may_be_known) or (is_known and not is_proven):
            return self._compared(kind, plan, call, ids, is_reloaded=is_reloaded)
        if not is_proven:
            return self._recorded(kind, plan, call, ids)
        return self._replayed(kind, plan, call, ids)

    def surely(self, kind: Kind, plan: Plan, call: TopLevel, ids: tuple[int, ...]) -> Any:
        """Replay a pass of which nothing can be computed: other ranks do not take part in it.

        Raises:
            ReplayError: it can't be replayed after all.
        """
        try:
            output, _ = run_frame(plan, call, ids, "try", self._catcher)
        except Irregular as irregular:
            raise ReplayError(
                f"all ranks were to replay, and this one can't: {irregular.why}. What flows into"
                " the frozen part does not come from the batch alone, or the store was damaged;"
                " train without replay"
            ) from irregular
        self._count_replay(kind)
        return output

    def recorded(self, kind: Kind, plan: Plan, call: TopLevel, ids: tuple[int, ...]) -> Any:
        """Compute a pass once, and record it."""
        output, frame = run_frame(plan, call, ids, "record", self._catcher)
        self._keep(kind, frame, ids)
        return output

    def by_name(self, kind: Kind, plan: Plan, call: TopLevel, ids: tuple[int, ...]) -> Any:
        """Replay a pass whose inputs were not loaded.

        Raises:
            Irregular: it can't be done; the model is as it was before.
        """
        remembered = list(zip(*(kind.remembered[name] for name in ids), strict=True))
        before = Snapshot(call.model, parameters=False) if plan.is_risky else None
        try:
            output, _ = run_frame(plan, call, ids, "replay", self._catcher, remembered=remembered)
        except Irregular as irregular:
            if before is not None:
                before.restore()
            self._stray(kind, irregular.why)
            raise
        if reads_poison(plan, call, ids, output, self._catcher, remembered):
            self._refuse_parts(kind, plan, call, ids)
        self._without_inputs += 1
        self._count_replay(kind)
        return output

    def _recorded(self, kind: Kind, plan: Plan, call: TopLevel, ids: tuple[int, ...]) -> Any:
        batch = self._to_be_mixed(kind, plan, call, ids)
        earlier = self._earlier(kind, call, ids)
        output, frame = run_frame(plan, call, ids, "record", self._catcher, earlier=earlier)
        self._keep_deeper(kind, call, ids, frame, earlier)
        if batch is not None and frame.irregular is None:
            self._mix(kind, batch)
        return output

    def _to_be_mixed(
        self, kind: Kind, plan: Plan, call: TopLevel, ids: tuple[int, ...]
    ) -> Recorded | None:
        is_to_be_proven = plan.proofs == 0 and kind.can_be_mixed
        return Recorded(call.kept(), ids) if is_to_be_proven else None

    def _mix(self, kind: Kind, batch: Recorded) -> None:
        kind.recent.append(batch)
        if len(kind.recent) == 2:
            prove_by_mixtures(kind, len(batch.ids), self._store, self._catcher)
            kind.recent = kind.recent[1:]

    def _took_first(
        self,
        kind: Kind,
        plan: Plan,
        call: TopLevel,
        ids: tuple[int, ...],
        frame: Frame,
        batch: Recorded | None,
    ) -> None:
        """Record what was traced, or hold it against what an earlier run has recorded."""
        if not kind.is_of_earlier_run or not are_recorded(frame.seen):
            self._keep(kind, frame, ids)
            if batch is not None:
                self._mix(kind, batch)
            return
        self.counts["compared"] += 1
        if compare(plan, frame.seen, kind.exclusions) is None:
            take_times(plan)
            self._confirm(kind, plan, ids, frame)
        else:
            plan_kind(kind, call, len(ids), self._store)
            kind.forget_records()

    def _confirm(self, kind: Kind, plan: Plan, ids: tuple[int, ...], frame: Frame) -> None:
        """What was recorded is what is computed."""
        kind.has_output_proof = True
        plan.proofs += ids not in kind.groupings
        kind.known.update(ids)
        kind.remember(ids, frame.keys)
        self._count_replay(kind)

    def _keep(self, kind: Kind, frame: Frame, ids: tuple[int, ...]) -> None:
        frame.commit()
        if frame.irregular is not None:
            self.counts["plain"] += 1
            self._stray(kind, frame.irregular)
            return
        self.counts["recorded"] += 1
        kind.remember(ids, frame.keys)
        kind.known.update(ids)
        kind.groupings.add(ids)

    def _keep_deeper(
        self, kind: Kind, call: TopLevel, ids: tuple[int, ...], frame: Frame, earlier: Plan | None
    ) -> None:
        """Keep what was recorded, perhaps from what an earlier cut has kept."""
        if read_too_little(earlier, frame.plan, call, ids, frame, self._catcher):
            assert earlier is not None
            self._table.forget_earlier()
            raise ReplayError(explained(earlier))
        self._keep(kind, frame, ids)

    def _stray(self, kind: Kind, why: str) -> None:
        kind.strays += 1
        if kind.strays >= 3 and kind.strays > kind.replayed:
            kind.give_up(f"passes do not all go the same way: {why}")

    def _replayed(self, kind: Kind, plan: Plan, call: TopLevel, ids: tuple[int, ...]) -> Any:
        before = Snapshot(call.model, parameters=False) if plan.is_risky else None
        was_known = kind.known.issuperset(ids)
        earlier = None if was_known else self._earlier(kind, call, ids)
        try:
            output, frame = run_frame(plan, call, ids, "replay", self._catcher, earlier=earlier)
        except Irregular as irregular:
            if before is not None:
                before.restore()
            if isinstance(irregular, Unknown):
                return self._recorded(kind, plan, call, ids)
            self._stray(kind, irregular.why)
            return self.plainly(call)
        if frame.mode == "record":
            self._keep_deeper(kind, call, ids, frame, earlier)
            self.has_changed |= was_known
        elif reads_poison(plan, call, ids, output, self._catcher):
            self._refuse_parts(kind, plan, call, ids)
        else:
            frame.commit()
            kind.known.update(ids)
            kind.remember(ids, frame.keys)
            self._count_replay(kind)
        return output

    def _refuse_parts(
        self, kind: Kind, plan: Plan, call: TopLevel, ids: tuple[int, ...]
    ) -> NoReturn:
        """Stop, since the pass can't be taken back; whoever goes on gets all kept whole."""
        kind.exclusions.keeps_whole = True
        plan_kind(kind, call, len(ids), self._store)
        kind.forget_records()
        raise ReplayError(explained(plan))

    def _earlier(self, kind: Kind, call: TopLevel, ids: tuple[int, ...]) -> Plan | None:
        """A cut further in front, from whose records the kind's own can be made."""
        earlier = self._table.earlier_plan(call, len(ids))
        return earlier if earlier is not None and has_all_reads(earlier, kind.graph) else None

    def _count_replay(self, kind: Kind) -> None:
        kind.replayed += 1
        self.since_check += 1
        self.counts["replayed"] += 1
        assert kind.plan is not None
        self.has_rounded |= (
            kind.exclusions.has_rounded or kind.plan.cut.rounds or _is_narrowed(kind.plan)
        )

    def _compared(
        self,
        kind: Kind,
        plan: Plan,
        call: TopLevel,
        ids: tuple[int, ...],
        *,
        is_reloaded: bool = False,
    ) -> Any:
        """Replay for trial, compute for real, and hold the one against the other."""
        try:
            replayed, _ = try_frame(plan, call, ids, "try", self._catcher)
        except Irregular as irregular:
            is_known = kind.known.issuperset(ids)
            if is_known and isinstance(irregular, Unknown) and irregular.chosen is not None:
                exclude_chosen(irregular.chosen, kind.exclusions)
                plan_kind(kind, call, len(ids), self._store)
                kind.forget_records()
                return self.plainly(call)
            self.has_changed |= is_known
            if is_reloaded and self._without_inputs:
                raise ReplayError(
                    "an audit found that the data set does not give a sample as it did when it was"
                    f" recorded, after {self._without_inputs} batches that were not loaded: random"
                    ' augmentation, or data that changed. Use inputs="load", or views=K'
                ) from None
            return self._recorded(kind, plan, call, ids)
        output, frame = run_frame(plan, call, ids, "capture", self._catcher)
        if frame.irregular is not None:
            self._keep(kind, frame, ids)
            return output
        self.counts["compared"] += 1
        differing = compare(plan, frame.seen, kind.exclusions)
        verdict = judge_output(plan, replayed, output, kind.exclusions)
        if differing is None and verdict.holds:
            self._confirm(kind, plan, ids, frame)
            return output
        rewritten = self._table.rewritten()
        if rewritten is not None:
            self._table.forget(rewritten)
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
            plan_kind(kind, call, len(ids), self._store)
            kind.forget_records()
        return output


def _are_found(kind: Kind, plan: Plan, ids: tuple[int, ...]) -> bool:
    """Whether the store has all that was recorded of these samples."""
    if not all(name in kind.remembered for name in ids):
        return False
    columns = zip(*(kind.remembered[name] for name in ids), strict=True)
    return all(
        station.shelf is None or min(station.shelf.find(column)) >= 0
        for station, column in zip(plan.stations, columns, strict=False)
    )


def _is_narrowed(plan: Plan) -> bool:
    """Whether something is kept in fewer bytes than it has."""
    return any(
        station.layouts[position].kept_as is not None
        for station in plan.stations
        for position in (*station.cut_results, *station.whole_results)
    )
