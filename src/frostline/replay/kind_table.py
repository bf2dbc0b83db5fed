"""All kinds of pass of one model: found, traced when they are new, and dropped when they change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from frostline.replay.compiled import IN_PLACE
from frostline.replay.kinds import Kind, key_of, plan_kind, trace_kind
from frostline.replay.own_changes import OwnChanges
from frostline.replay.plan import Plan
from frostline.replay.runner import TopLevel
from frostline.replay.sharded_blocks import blocks_of
from frostline.replay.store import Store
from frostline.replay.suitable import unsuitable, without_cut
from frostline.replay.watch import State, Watch

_MOST = 64
"""Kinds of pass (shapes, modes, settings) that are traced at most."""
_UNSETTLED_PASSES = 4
"""First passes of a kind after which is looked what they changed in the model's attributes."""


class KindTable:
    """Knows which kind of pass a call is.

    Args:
        model: the whole model.
        store: where records go.
        rounding: whether rounding is accepted.
        keep_as: the dtype in which wider floating values are kept, or None.

    Attributes:
        given_up: why nothing is replayed any more, until other tensors train.
        is_sharded: whether ``fully_shard`` has sharded the model, so that its ranks go in step.
        number: stands for the modes and settings of the model.
        unsuitable: why this model can't be replayed at all, as it is now.
    """

    def __init__(
        self,
        model: nn.Module,
        store: Store,
        *,
        rounding: bool,
        keep_as: torch.dtype | None = None,
    ) -> None:
        self.given_up: str | None = None
        self.number = 0
        self.is_sharded = bool(blocks_of(model))
        self.unsuitable = unsuitable(model) or without_cut(model)
        self._model = model
        self._store = store
        self._rounding = rounding
        self._keep_as = keep_as
        self._watch: Watch | None = None
        self._own_changes = OwnChanges()
        self._kinds: dict[Any, Kind] = {}
        self._earlier: list[Kind] = []
        self._state: State | None = None
        self._numbers: dict[Any, int] = {}
        self._rewrites: Counter[str] = Counter()

    # What is there.

    @property
    def kinds(self) -> list[Kind]:
        """All kinds, each once."""
        return list({id(kind): kind for kind in self._kinds.values()}.values())

    @property
    def is_full(self) -> bool:
        """Whether no further kind is going to be traced."""
        return len(self.kinds) >= _MOST

    @property
    def plans(self) -> list[Plan]:
        """Those that can be replayed."""
        return [kind.plan for kind in self.kinds if kind.plan is not None]

    @property
    def declined(self) -> str | None:
        """Why nothing is replayed; None while all is well, or nothing has been seen."""
        reason = self.unsuitable or self.given_up
        if reason is not None or not self._kinds or self.plans:
            return reason
        return self.kinds[0].why

    @property
    def refused(self) -> Mapping[str, str]:
        """Frozen calls that are made every time, by place → why."""
        return {str(place): why for kind in self.kinds for place, why in kind.refused.items()}

    # The model now.

    def look(self) -> bool:
        """Look at the model; whether other tensors train than before, so that all is new."""
        if self._watch is None:
            self.unsuitable = unsuitable(self._model)
            if self.unsuitable is not None:
                return False
            self._watch = Watch(self._model)
        state, last = self._watch.look(), self._state
        if state is last:
            return False
        self._state = state
        self.number = self._numbers.setdefault((state.modes, state.settings), len(self._numbers))
        self.is_sharded = bool(blocks_of(self._model))
        self.unsuitable = unsuitable(self._model) or without_cut(self._model)
        if last is not None and state.tensors == last.tensors:
            return False
        froze_more = last is not None and _froze_more(last.tensors, state.tensors)
        self._earlier = [kind for kind in self.kinds if kind.plan] if froze_more else []
        self._kinds.clear()
        self.given_up = None
        return True

    def is_compiled(self) -> bool:
        """Whether a module has been compiled in place; nothing inside must be caught then."""
        return self._watch is None or self._watch.has_attribute(IN_PLACE)

    def known(self, call: TopLevel) -> Kind | None:
        """The kind of a call, if it has been seen."""
        return self._kinds.get(key_of(call, self.number))

    def found(self, call: TopLevel, samples: int, *, has_replayed: bool) -> Kind | None:
        """The kind of a call, traced if it is new; None if there are too many."""
        kind = self.known(call)
        if kind is not None:
            return kind
        if self.is_full:
            if not has_replayed:
                self.given_up = (
                    f"no two of {_MOST} passes had the same shapes, modes and settings, so nothing"
                    " can be replayed: pad inputs to few lengths"
                )
            return None
        kind = trace_kind(call, rounding=self._rounding, keep_as=self._keep_as)
        self._own_changes.refuse_in(kind)
        self._kinds[key_of(call, self.number)] = kind
        plan_kind(kind, call, samples, self._store)
        if kind.plan is None and not call.has_rows(samples):
            kind.give_up(
                f"{samples} samples were named, and no input has so many rows: name each sample of"
                " the batch, in its order"
            )
        return kind

    def settle(self, kind: Kind, call: TopLevel, samples: int) -> None:
        """See which plain attributes a pass has set; after a few passes that is known."""
        kind.passes += 1
        before, number = self._state, self.number
        if kind.passes > _UNSETTLED_PASSES or before is None or self.look():
            return
        after = self._state
        assert after is not None
        if after.settings == before.settings:
            return
        is_alike, is_refused, settled = self._own_changes.note(kind, before, after)
        for setting in settled:
            assert self._watch is not None
            self._watch.ignore(setting)
        if is_refused:
            plan_kind(kind, call, samples, self._store)
            kind.forget_records()
        self._kinds[key_of(call, number)] = kind
        self.look()  # what is ignored from now on is not in the state any more
        if is_alike:
            self._kinds[key_of(call, self.number)] = kind

    def earlier_plan(self, call: TopLevel, samples: int) -> Plan | None:
        """A cut from before more was frozen: what it kept need not be computed again."""
        for kind in self._earlier:
            plan = kind.plan
            if plan is None or not plan.proofs or plan.samples != samples:
                continue
            if kind.graph.calls[0].place.name == call.name and kind.rewritten(quick=True) is None:
                return plan
        return None

    def forget_earlier(self) -> None:
        """What earlier cuts kept is not enough for those of now."""
        self._earlier.clear()

    # Weights.

    def rewritten(self, *, quick: bool = False) -> str | None:
        """The name of a tensor whose content changed since its values were recorded.

        Args:
            quick: whether content is looked at only where a tensor's version has moved.
        """
        names = (kind.rewritten(quick=quick) for kind in self.kinds)
        return next((name for name in names if name is not None), None)

    def forget(self, rewritten: str) -> None:
        """What was recorded was computed with other weights."""
        self._kinds.clear()
        self._earlier.clear()
        self._rewrites[rewritten] += 1
        if self._rewrites[rewritten] > 3:
            self.given_up = (
                f"the frozen tensor {rewritten!r} keeps changing, so nothing that was computed with"
                " it holds; frozen.verify() and fl.guard tell who writes to it"
            )


def _froze_more(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Whether the tensors are the same, and what did not train before does not train now."""
    return len(before) == len(after) and all(
        old == new or (old[0] == new[0] and old[1] and not new[1])
        for old, new in zip(before, after, strict=True)
    )
