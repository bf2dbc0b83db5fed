"""One top-level call with stand-ins at the planned calls: recorded, replayed, or captured."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import repeat
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from frostline.proof import fingerprint
from frostline.replay.content import chained, digest_of, sample_digests
from frostline.replay.cut import Source
from frostline.replay.graph import FROM_OUTSIDE, Place
from frostline.replay.memory import address_of
from frostline.replay.nest import Nest, open_nest
from frostline.replay.plan import Plan, Station
from frostline.replay.stand_in import Forward
from frostline.replay.store import StoreDamaged
from frostline.replay.versions import marks_of, versions_of

Mode = Literal["replay", "try", "record", "capture", "prefix"]


class Seen(NamedTuple):
    """A planned call that was made.

    Attributes:
        station: which.
        digests: of the samples.
        path: digest for what does not depend on the sample.
        tensors: what it returned.
    """

    station: Station
    digests: list[bytes]
    path: bytes
    tensors: list[Tensor]


class _Trail(NamedTuple):
    """What a call depends on.

    Attributes:
        columns: for each sample, the digests of all contents that came in so far; a column once.
        path: digest of what is common to all samples: forms, settings, the way.
    """

    columns: tuple[Sequence[bytes], ...]
    path: bytes


class Irregular(BaseException):
    """A pass went another way than the recorded one, so that replay can't go on.

    Not an Exception: model code that catches those must not swallow it.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Unknown(Irregular):
    """A sample is not recorded at a planned call, after earlier calls were replayed.

    Args:
        why: what is told.
        chosen: where content decided in another way than when the sample was recorded, if it did.
    """

    def __init__(self, why: str, chosen: Station | None = None) -> None:
        super().__init__(why)
        self.chosen = chosen


class Enough(BaseException):
    """All that is kept has been computed; the rest of the pass is not wanted."""


class Frame:
    """Makes, or does not make, the planned calls of one top-level call.

    A sample is known by the content of what it brings into the planned calls, so that another
    batch, changed inputs or random augmentation are never taken for what was recorded. The first
    planned call decides: if all samples are known the pass is replayed, else it is computed and
    what is new is recorded.

    Args:
        plan: the cut.
        start: columns of digests: the samples' names, and what else they bring into the pass.
        mode: ``replay`` replays where it can and records where it can't; ``try`` gives up where it
            can't; ``record`` and ``capture`` compute all; ``prefix`` computes as far as anything
            is kept, and leaves the pass there by :class:`Enough`.
        remembered: the samples' digests at the planned calls, where their inputs are not there to
            be looked at.
        inner: makes what this one does not stand in for: a frame of an earlier cut.
        inputs: the tensors that the top-level call is given.
    """

    def __init__(
        self,
        plan: Plan,
        start: Sequence[Sequence[bytes]],
        mode: Mode = "replay",
        *,
        remembered: Sequence[Sequence[bytes]] | None = None,
        inner: Frame | None = None,
        inputs: Sequence[Tensor] = (),
    ) -> None:
        self.mode: Mode = mode
        self.plan = plan
        self.irregular: str | None = None
        self.replayed = 0
        self.seen: list[Seen] = []
        self.keys: dict[int, list[bytes]] = {}
        self._remembered = remembered
        self._inner = inner
        self._undecided = mode in ("replay", "try")
        self._turns: Counter[str] = Counter()
        self._start = _Trail(tuple(start), plan.key)
        self._all = self._start
        self._trails: dict[int, _Trail] = {}
        self._next = 0
        self._lacks_some = False
        self._handed: dict[int, Sequence[Tensor]] = {}
        self._versions: dict[int, list[int]] = {}
        self._hold(FROM_OUTSIDE, inputs)
        self._is_inside = False
        self._prints: dict[int, tuple[Tensor, Hashable, bytes]] = {}

    def call(self, name: str, module: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Make one call of a module, or stand in for it."""
        if self._is_inside or name not in self.plan.names:
            return self._pass_on(name, module, forward, args, kwargs)
        place = Place(name, self._turns[name])
        self._turns[name] += 1
        try:
            station = self.plan.station(place)
        except KeyError:
            self._stray(f"{place} was not called when the pass was traced")
            station = None
        if station is None:
            return self._pass_on(name, module, forward, args, kwargs)
        return self._planned(station, module, forward, args, kwargs)

    def _pass_on(
        self, name: str, module: nn.Module, forward: Forward, args: Any, kwargs: Any
    ) -> Any:
        if self._inner is not None:
            return self._inner.call(name, module, forward, args, kwargs)
        return forward(*args, **kwargs)

    def finish(self, output: Any) -> None:
        """The pass is over: see that no planned call is missing for which something stands in."""
        self._pass_over(len(self.plan.stations))
        # What a replay does not fill is not the caller's to read.
        tensors = open_nest(output, into_objects=not self.plan.cut.hides).tensors
        if self._lacks_some and self.replayed and holds_nan(tensors):
            self._stray("another way was taken than when the pass was traced")

    def _pass_over(self, order: int) -> None:
        """Calls before ``order`` that were not made: random layers may be left out, others not."""
        for missing in self.plan.stations[self._next : order]:
            self._lacks_some = True
            if not (missing.planned.is_kept and missing.planned.can_rerun):
                self._stray(f"{missing.planned.call.place} was not called this time")

    def _planned(
        self, station: Station, module: nn.Module, forward: Forward, args: Any, kwargs: Any
    ) -> Any:
        if station.order < self._next:
            self._stray(f"{station.planned.call.place} was not called in its turn")
        self._pass_over(station.order)
        self._next = station.order + 1
        given = open_nest((args, kwargs))
        digests = self._key(station, given)
        if self.mode in ("replay", "try") and self.irregular is None:
            found = self._find(station, digests, given)
            if found is not None:
                self._undecided = False
                self.replayed += station.planned.is_kept
                return self._hand(station, found)
            if self.mode == "try":
                raise Unknown("not all samples are known", self._chosen_before(station))
            if not self._undecided and not self._can_rerun(station, given):
                raise Unknown(f"{station.planned.call.place} got other inputs than recorded")
            if self._undecided:
                self.mode = "record"
        if self._remembered is not None:
            raise Irregular("a sample is not known")
        run = partial(self._pass_on, station.name, module, forward, args, kwargs)
        return self._compute(station, digests, run)

    def _chosen_before(self, station: Station) -> Station | None:
        """Where content may have decided, if what comes before that was known."""
        orders = [order for order in self.plan.chosen if order <= station.order]
        return self.plan.stations[orders[-1]] if orders and self.replayed else None

    def _can_rerun(self, station: Station, given: Nest) -> bool:
        # Content may have decided for something else than when traced, of which nothing is kept.
        return station.planned.can_rerun and not (
            station.planned.is_chosen and holds_nan(given.tensors)
        )

    def _compute(self, station: Station, digests: list[bytes], run: Callable[[], Any]) -> Any:
        self._is_inside = True
        start = time.perf_counter()
        try:
            output = run()
        finally:
            self._is_inside = False
        station.seconds = min(station.seconds or math.inf, time.perf_counter() - start)
        tensors = open_nest(output).tensors
        if not _fits(station, tensors):
            self._stray(f"{station.planned.call.place} returned another form than when traced")
        elif self.irregular is None and station.is_recorded:
            # Code between modules may write into what it gets.
            held = [
                tensor.detach().clone(memory_format=torch.preserve_format) if kept else tensor
                for tensor, kept in zip(tensors, station.planned.kept, strict=True)
            ]
            self.seen.append(Seen(station, digests, self._path_of(station), held))
        self._hold(station.planned.index, tensors)
        if self.mode == "prefix" and station.order == self.plan.last_kept:
            raise Enough
        return output

    def keeps_nan(self) -> bool:
        """Whether what would be kept holds NaN."""
        return any(
            holds_nan(station.layouts[position].kept_of(tensors[position]))
            for station, _, _, tensors in self.seen
            for position in (*station.cut_results, *station.whole_results)
        )

    def commit(self) -> None:
        """Keep what was recorded; only now, so that a pass that fails halfway leaves nothing."""
        if self.irregular is not None:
            return
        for station, digests, path, tensors in self.seen:
            if station.shelf is not None:
                station.shelf.add(digests, station.records(tensors, station.cut_results))
            if station.constants is not None:
                whole = station.records(tensors, station.whole_results)
                station.constants.add([path], whole)

    # What a call depends on.

    def _key(self, station: Station, given: Nest) -> list[bytes]:
        """Each sample's digest of all that this call depends on; empty if nothing is kept of it."""
        none = [b""] * len(self._start.columns[0])
        if len(station.planned.sources) != len(given.tensors):
            self._stray(f"{station.planned.call.place} got another number of tensors than traced")
            return none
        trail = self._trail_to(station, given)
        if trail is None:
            self._stray(f"{station.planned.call.place} got something else than when traced")
            return none
        self._trails[station.planned.index] = trail
        if self.plan.has_blind_sources:
            path = digest_of(self._all.path, trail.path)
            self._all = _Trail(_distinct([*self._all.columns, *trail.columns]), path)
        if self._remembered is not None:
            keys = list(self._remembered[station.order])
        elif station.shelf is None:
            keys = none
        else:
            first, *others = trail.columns
            keys = chained(first, [*others, repeat(trail.path, len(none))])
        self.keys[station.order] = keys
        return keys

    def _trail_to(self, station: Station, given: Nest) -> _Trail | None:
        """What a call depends on; None if it got something else than when it was traced."""
        before = [self._start]
        contents: list[Sequence[bytes]] = []
        chosen: list[bytes] = []
        for source, tensor in zip(station.planned.sources, given.tensors, strict=True):
            if source.is_exact and not self._is_from(tensor, source):
                return None
            if source.kind == "content" and (self._remembered is None or station.planned.is_chosen):
                contents.append(sample_digests(tensor, self.plan.samples))
            elif source.kind == "chosen":
                chosen.append(self._print_of(tensor))
            elif source.kind == "blind":
                before.append(self._all)  # it may descend from any earlier call
            elif source.kind == "call":
                if not self._is_from(tensor, source):
                    return None
                before.append(self._trails[source.call])
        columns = [column for trail in before for column in trail.columns]
        path = station.path_to(given, [*(trail.path for trail in before), *chosen])
        if station.planned.is_chosen:
            self._note_given(station, contents, path)
        return _Trail(_distinct([*columns, *contents]), path)

    def _note_given(self, station: Station, contents: list[Sequence[bytes]], path: bytes) -> None:
        """What content has decided on is held against what was remembered of the samples."""
        own = chained([path] * self.plan.samples, contents)
        place = len(self.plan.stations) + self.plan.chosen.index(station.order)
        if self._remembered is not None and list(self._remembered[place]) != own:
            raise Irregular("content decided in another way than when the samples were recorded")
        self.keys[place] = own

    def _is_from(self, tensor: Tensor, source: Source) -> bool:
        results = self._handed.get(source.call)
        if results is None:
            return False
        wanted = [results[position] for position in source.results]
        if source.is_exact:
            versions = [self._versions[source.call][position] for position in source.results]
            is_written = versions != versions_of(wanted)
            return not is_written and any(tensor is result for result in wanted)
        return address_of(tensor) in map(address_of, wanted)

    def _hold(self, call: int, tensors: Sequence[Tensor]) -> None:
        self._handed[call] = tensors
        self._versions[call] = versions_of(tensors)

    def _print_of(self, tensor: Tensor) -> bytes:
        """Digest of all of a tensor; many layers are given the same tables."""
        mark = marks_of([tensor])[0]
        known = self._prints.get(id(tensor))
        if known is None or known[1] != mark:
            known = self._prints[id(tensor)] = tensor, mark, fingerprint(tensor).encode()
        return known[2]

    def _path_of(self, station: Station) -> bytes:
        return digest_of(self._trails[station.planned.index].path, "whole")

    # What is handed out instead.

    def _find(self, station: Station, digests: list[bytes], given: Nest) -> Sequence[Tensor] | None:
        """The results of a call that is not made; None if a sample is not known."""
        if not station.is_recorded:
            return station.results({}, given.tensors)
        try:
            kept = station.recorded(digests, self._path_of(station))
        except StoreDamaged:
            return None
        return None if kept is None else station.results(kept, given.tensors)

    def _hand(self, station: Station, results: Sequence[Tensor]) -> Any:
        self._hold(station.planned.index, results)
        return station.holding(results)

    def _stray(self, why: str) -> None:
        if self.irregular is None:
            self.irregular = why
        if self.mode == "try" or (self.mode == "replay" and not self._undecided):
            raise Irregular(why)


def _distinct(columns: list[Sequence[bytes]]) -> tuple[Sequence[bytes], ...]:
    """Each column once, by identity: what two calls have from one and the same place."""
    return tuple({id(column): column for column in columns}.values())


def holds_nan(output: Any) -> bool:
    """Whether a tensor in what a call returned, or in an attribute of it, holds NaN."""
    tensors = open_nest(output, into_objects=True).tensors
    return any(t.is_floating_point() and bool(t.detach().isnan().any()) for t in tensors)


def _fits(station: Station, tensors: Sequence[Tensor]) -> bool:
    return len(tensors) == len(station.layouts) and all(
        tuple(tensor.shape) == layout.shape
        and (tensor.stride() == layout.strides or not kept)
        and tensor.dtype == layout.dtype
        for tensor, layout, kept in zip(tensors, station.layouts, station.planned.kept, strict=True)
    )
