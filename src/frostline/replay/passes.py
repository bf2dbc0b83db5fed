"""What becomes of each call that a loop makes of its model, batch by batch."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from frostline.errors import ReplayError
from frostline.replay.audits import Audits
from frostline.replay.catcher import Catcher
from frostline.replay.evict import Eviction, tensors_elsewhere
from frostline.replay.frame import Irregular
from frostline.replay.in_step import InStep, Way
from frostline.replay.kind_table import KindTable
from frostline.replay.kinds import Kind
from frostline.replay.making import Making
from frostline.replay.readiness import Readiness
from frostline.replay.runner import TopLevel
from frostline.replay.skipping import Fields
from frostline.replay.stand_in import Forward
from frostline.replay.store import ReplayWarning, Store

_CHANGED_BATCHES = 8
"""Batches of known samples with other contents, one after another, that mean augmentation."""

_NOT_CALLED = (
    "the model has not been called for the samples that were named. If a compiled copy of it was,"
    " compile only what trains (model.head.compile()), and call the model itself"
)


class _Batch(NamedTuple):
    ids: tuple[int, ...]
    fields: Fields


class Passes:
    """Decides for each top-level call of a model.

    Args:
        model: the whole model.
        store: where records go.
        audit: share of replays to compare.
        rounding: whether rounding is accepted.
        keep_as: the dtype in which wider floating values are kept, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        store: Store,
        *,
        audit: float,
        rounding: bool,
        keep_as: torch.dtype | None = None,
    ) -> None:
        audits = Audits(audit)
        self.table = KindTable(model, store, rounding=rounding, keep_as=keep_as)
        self._model = model
        self._store = store
        self._catcher = Catcher(model, self)
        self._making = Making(self.table, store, self._catcher, audits)
        self._readiness = Readiness(audits)
        # The batch that calls are made for, and all that are open, the newest last.
        self._ids: tuple[int, ...] = ()
        self._fields = Fields()
        self._batches: list[_Batch] = []
        # Modules that were called with the loader's own fields: a call of theirs with something
        # else is not of its batch.
        self._strict: set[str] = set()
        self._size: int | None = None
        self._last_of_size: dict[int, tuple[int, ...]] = {}
        self._round: set[int] = set()
        self._changed = 0
        self._eviction: Eviction | None = None
        self._open: list[Fields] = []
        self._was_called: bool | None = None
        self._steps: InStep | None = None

    # What others ask.

    @property
    def counts(self) -> Counter[str]:
        """Passes recorded, replayed, plain and compared."""
        return self._making.counts

    @property
    def exact(self) -> bool:
        """Whether all replayed values had the bits of computed ones."""
        return not self._making.has_rounded

    @property
    def declined(self) -> str | None:
        """Why nothing is replayed."""
        return self.table.declined or (_NOT_CALLED if self._was_called is False else None)

    @property
    def refused(self) -> Mapping[str, str]:
        """Frozen calls that are made every time → why."""
        return self.table.refused

    @property
    def skipped_share(self) -> float:
        """Share of the forward time that a replayed pass leaves out."""
        plans = self.table.plans
        total = sum(plan.seconds for plan in plans)
        skipped = sum(station.seconds for plan in plans for station in plan.stations)
        return min(1.0, skipped / total) if total else 0.0

    @property
    def unneeded_fields(self) -> frozenset[str]:
        """Fields of the loader that only replayed calls would use."""
        return self._readiness.unneeded_fields

    def needs_no_inputs(self, ids: tuple[int, ...]) -> bool:
        """Whether a batch can be replayed without its unneeded fields; now and then one is not."""
        is_usual = self.table.given_up is None and len(ids) == self._size
        if self.table.is_sharded:
            return False  # ranks go in step, and each looks at what it brings
        return is_usual and self._readiness.is_ready(ids)

    @property
    def has_open_batch(self) -> bool:
        """Whether a batch of the model is open, of these passes or of others beside."""
        return bool(self._open)

    def evict(self) -> None:
        """Take the tensors of replayed modules out of memory until they are needed."""
        plans = [plan for plan in self.table.plans if plan.proofs]
        if plans and self._eviction is None:
            glue = frozenset().union(*(plan.cut.glue_tensors for plan in plans))
            modules = [module for plan in plans for module in plan.modules]
            self._eviction = Eviction(modules, tensors_elsewhere(self._model, modules, glue))
            for kind in self.table.kinds:
                if kind.weights is not None:
                    kind.weights.trust_addresses()

    def share(self, open_batches: list[Fields]) -> None:
        """Take note of batches of the same model that are open beside."""
        self._open = open_batches

    # A batch.

    @contextmanager
    def batch(self, ids: tuple[int, ...], fields: Fields | None = None) -> Iterator[None]:
        """Take top-level calls to be made for these samples while this is open.

        Several may be open, and end in any order (nested loops, ``zip``): a call is for the one
        of which it takes a field, else for the newest.
        """
        if not self._round.isdisjoint(ids):
            self._round.clear()
            self._forget_rewritten()
        self._round.update(ids)
        if not self.table.plans or self.table.is_compiled():
            self._look()  # else the first call does: before it nothing needs to be known
        if self.table.unsuitable is not None:
            yield
            return
        mine = self._ids, self._fields = _Batch(ids, fields or Fields())
        names = {name for plan in self.table.plans for name in plan.names}
        try:
            self._batches.append(mine)
            self._open.append(mine.fields)
            with self._catcher.open(names):
                yield
        finally:
            self._batches = [other for other in self._batches if other.fields is not mine.fields]
            self._open.remove(mine.fields)
            self._was_called = self._was_called or self._catcher.was_entered
            self._notice_augmentation()
            self._readiness.end_batch(is_usual=len(ids) == self._size)
            self._last_of_size[len(ids)] = ids
            self._ids, self._fields = self._batches[-1] if self._batches else _Batch((), Fields())

    def end_epoch(self) -> None:
        """A round through the data is over, and nobody else has had the model meanwhile.

        Raises:
            ReplayError: frozen tensors were rewritten while what they had given was replayed.
        """
        self._store.flush()
        name = self.table.rewritten() if self._making.since_check else None
        self._making.since_check = 0
        if name is not None:
            self.table.forget(name)
            raise ReplayError(
                f"the frozen tensor {name!r} was rewritten in the middle of an epoch, past autograd"
                " (.data, NumPy, a fused optimizer): some of its batches were replayed with what"
                " the old values had given. frozen.verify() and fl.guard tell who writes to it"
            )

    def _forget_rewritten(self) -> None:
        """Once a round through the data: contents, which versions do not always tell."""
        replayed, self._making.since_check = self._making.since_check, 0
        told = self.table.rewritten(quick=True)
        name = told or self.table.rewritten()
        if name is None:
            return
        self.table.forget(name)
        # What versions tell is seen before the next replay; the rest only now.
        if replayed and told is None:
            warnings.warn(
                f"the frozen tensor {name!r} was rewritten since the last round; up to {replayed}"
                " batches may have been replayed with what its old values had given",
                ReplayWarning,
                stacklevel=2,
            )

    def _notice_augmentation(self) -> None:
        self._changed = self._changed + 1 if self._making.has_changed else 0
        if self._making.has_changed:
            self._readiness.is_off = True  # samples do not come the same way twice
        self._making.has_changed = False
        if self._changed >= _CHANGED_BATCHES and not self.counts["replayed"]:
            self.table.given_up = (
                "the inputs of known samples differ from epoch to epoch: random augmentation, or"
                " ids that do not name the same sample each time. Keep a fixed number of variants"
                " with views=K, or augment behind the frozen part"
            )

    def _look(self) -> None:
        number = self.table.number
        if self.table.look():
            self._catcher.refresh()
            self._readiness.forget()
            self._changed = 0
            if self._eviction is not None:
                self._eviction.bring_back()
                self._eviction = None
        elif self.table.number != number:
            self._catcher.refresh()  # a part may have been compiled

    # A call.

    def call(self, name: str, module: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Make one top-level call, or stand in for as much of it as can be."""
        call = TopLevel(
            model=self._model, name=name, module=module, forward=forward, args=args, kwargs=kwargs
        )
        self._look()
        if self.table.unsuitable is not None:
            return call.run()
        if self._steps is None and self.table.is_sharded:
            self._steps = InStep(self._model)
        if len(self._batches) > 1:
            self._turn_to_batch_of(call)
        is_of_batch = self._fields.are_in(call)
        is_beside = not is_of_batch and any(other.are_in(call) for other in self._open)
        is_another = name in self._strict and not is_of_batch  # an evaluation
        if is_beside or is_another:
            return call.run() if self._steps is None else self._in_step(call, is_of_batch=False)
        lacks = self._fields.is_lacking(call)
        if is_of_batch:
            self._strict.add(name)
        if self._steps is not None:
            output = self._in_step(call, is_of_batch=True)
        else:
            output = self._made(call, lacks=lacks)
        self._fields.note_output(output)
        return output

    def _turn_to_batch_of(self, call: TopLevel) -> None:
        newest_first = self._batches[::-1]
        its_own = (batch for batch in newest_first if batch.fields.are_in(call))
        self._ids, self._fields = next(its_own, newest_first[0])

    def _in_step(self, call: TopLevel, *, is_of_batch: bool) -> Any:
        """Make a call of a sharded model: in the same way on all ranks."""
        steps = self._steps
        assert steps is not None
        kind = self.table.known(call) if is_of_batch else None
        way = steps.agree(self._wanted(kind, call) if is_of_batch else Way.COMPUTE)
        if way is Way.FREELY:
            with steps.gathered():
                rewritten = steps.share_digests()
                if rewritten is not None:
                    self.table.forget(rewritten)
                output = self._made(call, lacks=False) if is_of_batch else call.run()
            kind = self.table.known(call)
        elif kind is None or kind.plan is None or self._is_left_alone():
            return self._making.plainly(call)
        elif way is Way.REPLAY:
            output = self._making.surely(kind, kind.plan, call, self._ids)
        else:
            output = self._making.recorded(kind, kind.plan, call, self._ids)
        if kind is not None and kind.known.issuperset(self._ids):
            steps.note(kind, call, self._ids)
        return output

    def _wanted(self, kind: Kind | None, call: TopLevel) -> Way:
        """How the call has to be made, as far as this rank knows."""
        assert self._steps is not None
        if self._is_left_alone():
            return Way.COMPUTE
        if kind is None:
            return Way.COMPUTE if self.table.is_full else Way.FREELY
        if kind.rewritten(quick=True) is not None:
            return Way.FREELY
        return self._making.needs(kind, call, self._ids, self._steps)

    def _made(self, call: TopLevel, *, lacks: bool) -> Any:
        if self._is_left_alone():
            return self._making.plainly(self._fields.with_content(call) if lacks else call)
        return self._without_inputs(call) if lacks else self._with_inputs(call)

    def _with_inputs(self, call: TopLevel) -> Any:
        has_replayed = bool(self.counts["replayed"])
        kind = self.table.found(call, len(self._ids), has_replayed=has_replayed)
        if kind is None:
            return self._making.plainly(call)
        captured = kind.graph.take_captured()
        if not self._fields.is_poisoned:
            kind.note_paths(self._fields.paths_of(call))
            self._readiness.note(kind)
        rewritten = kind.rewritten(quick=True)
        if rewritten is not None:
            self.table.forget(rewritten)
        if kind.plan is None or rewritten is not None:
            return self._making.plainly(call)
        is_reloaded = self._readiness.is_to_be_audited(self._ids)
        compared = self.counts["compared"]
        output = self._making.make(
            kind, kind.plan, call, self._ids, is_reloaded=is_reloaded, captured=captured
        )
        if is_reloaded and self.counts["compared"] > compared:
            self._readiness.is_confirmed = True
        self.table.settle(kind, call, len(self._ids))
        return output

    def _without_inputs(self, call: TopLevel) -> Any:
        """Replay a pass whose inputs were not loaded; if that fails, load them after all."""
        kind = self.table.known(call)
        if kind is not None and kind.plan is not None and kind.rewritten(quick=True) is None:
            self._readiness.note(kind)
            if all(name in kind.remembered for name in self._ids):
                try:
                    return self._making.by_name(kind, kind.plan, call, self._ids)
                except Irregular:
                    pass  # it is counted there
        return self._with_inputs(self._fields.with_content(call))

    def _is_left_alone(self) -> bool:
        return self.table.given_up is not None or not self._is_regular_size()

    def _is_regular_size(self) -> bool:
        """Kernels change their last bits with the batch size, so one size is replayed.

        Another one is, if its batches hold the same samples every time (an unshuffled loader's
        last batch).
        """
        size = len(self._ids)
        if self._size is None:
            self._size = size
        return size == self._size or self._last_of_size.get(size) == self._ids
