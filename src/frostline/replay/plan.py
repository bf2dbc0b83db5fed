"""A cut made ready to run: where each planned call stands, what is kept of it, in which form."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import ReplayError
from frostline.replay.content import digest_of
from frostline.replay.cut import Cut, PlannedCall
from frostline.replay.graph import Graph, Place
from frostline.replay.layout import Layout
from frostline.replay.nest import Nest, rebuild
from frostline.replay.store import Shelf, Store


@dataclass(kw_only=True, eq=False)
class Station:
    """One planned call, as a replayed pass meets it.

    Attributes:
        order: its rank among the stations of the pass.
        name: canonical name of the module.
        planned: the call and what the cut says of it.
        layouts: the form of each result; whether it is cut into samples is settled here.
        shelf: where the parts of the kept results are, sample by sample; None if there are none.
        constants: where the kept results are that do not depend on the batch.
        ways_to_cut: how many ways there are to cut the results into samples.
        seconds: how long the call takes.
        fill: what comes in the place of what was not kept of a result.
    """

    order: int
    name: str
    planned: PlannedCall
    layouts: list[Layout]
    shelf: Shelf | None = None
    constants: Shelf | None = None
    ways_to_cut: int = 1
    seconds: float = 0.0
    fill: float = math.nan
    # Most passes go the way of the pass before.
    _path: tuple[Any, bytes] = ((), b"")

    @property
    def is_recorded(self) -> bool:
        """Whether anything is recorded of the call."""
        return self.shelf is not None or self.constants is not None

    @cached_property
    def cut_results(self) -> list[int]:
        """Positions of the kept results that are cut into samples."""
        return [p for p in self._kept() if self.layouts[p].batch_dim is not None]

    @cached_property
    def whole_results(self) -> list[int]:
        """Positions of the kept results that are kept whole."""
        return [p for p in self._kept() if self.layouts[p].batch_dim is None]

    @cached_property
    def keeps_part(self) -> bool:
        """Whether of a result a part alone is kept."""
        return any(self.layouts[position].part is not None for position in self.cut_results)

    def _kept(self) -> list[int]:
        return [position for position, kept in enumerate(self.planned.kept) if kept]

    def open(self, store: Store, key: bytes) -> None:
        """Find the shelves; their keys tell all that entries depend on beside the digests."""
        form = digest_of(key, self.order, self.name, self.layouts, self.planned.kept)
        if self.cut_results:
            size = sum(self.layouts[p].record_bytes for p in self.cut_results)
            self.shelf = store.shelf(form.hex(), size, note=str(self.planned.call.place))
        elif self.order == 0:
            # The first call decides whether a pass is replayed: a mark that its samples are known.
            self.shelf = store.shelf(form.hex(), 1)
        if self.whole_results:
            size = sum(self.layouts[p].record_bytes for p in self.whole_results)
            self.constants = store.shelf(digest_of(form, "whole").hex(), size)

    def records(self, tensors: Sequence[Tensor], positions: Sequence[int]) -> Tensor:
        """The bytes of some results, one row a sample (or one row): uint8."""
        if not positions:
            return torch.zeros(self.layouts[0].samples, 1, dtype=torch.uint8)
        parts = [self.layouts[p].to_records(tensors[p]) for p in positions]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def kept(self, cut: Tensor | None, whole: Tensor | None) -> dict[int, Tensor]:
        """The kept results, by position.

        Args:
            cut: rows of :attr:`shelf`, one a sample.
            whole: the one row of :attr:`constants`.
        """
        made: dict[int, Tensor] = {}
        for records, positions in ((cut, self.cut_results), (whole, self.whole_results)):
            start = 0
            for position in positions if records is not None else ():
                layout = self.layouts[position]
                assert records is not None
                made[position] = layout.from_records(
                    records[:, start : start + layout.record_bytes], fill=self.fill
                )
                start += layout.record_bytes
        return made

    def recorded(self, digests: Sequence[bytes], path: bytes) -> dict[int, Tensor] | None:
        """The kept results as they are on the shelves, by position; None if any is not there.

        Args:
            digests: of the samples.
            path: digest for what does not depend on the sample.

        Raises:
            StoreDamaged: one is not what was written; it is forgotten.
        """
        cut = whole = None
        if self.shelf is not None:
            rows = self.shelf.find(digests)
            if min(rows) < 0:
                return None
            cut = self.shelf.read(rows)
        if self.constants is not None:
            rows = self.constants.find([path])
            if rows[0] < 0:
                return None
            whole = self.constants.read(rows)
        return self.kept(cut, whole)

    def path_to(self, given: Nest, before: Sequence[bytes]) -> bytes:
        """Digest of what is common to all samples in what the call depends on.

        Args:
            given: its arguments.
            before: the same of the calls that it depends on.
        """
        forms = [(tuple(t.shape), t.dtype, t.device) for t in given.tensors]
        parts = (given.form, forms, before)
        if parts != self._path[0]:
            self._path = parts, digest_of(self.order, given.form, forms, *before)
        return self._path[1]

    def results(self, kept: dict[int, Tensor], given: Sequence[Tensor]) -> list[Tensor]:
        """The call's results: kept ones, arguments that it hands through, placeholders."""
        made = dict(kept)
        for position, argument in enumerate(self.planned.handed):
            if argument is not None:
                made[position] = given[argument]
            elif position not in made:
                is_written = position in self.planned.written
                made[position] = self.layouts[position].placeholder(is_written=is_written)
        return [made[position] for position in range(len(self.layouts))]

    def returned(self, kept: dict[int, Tensor], given: Sequence[Tensor]) -> Any:
        """What the call returns: its :meth:`results`, in the form in which it returns them."""
        return self.holding(self.results(kept, given))

    def holding(self, results: Sequence[Tensor]) -> Any:
        """What the call returns, made of its results."""
        return rebuild(self.planned.call.template, results)


@dataclass(kw_only=True, eq=False)
class Plan:
    """How to replay one kind of top-level call.

    Attributes:
        graph: what was traced.
        cut: where the frost line is.
        samples: the batch size.
        stations: the planned calls, in order.
        key: digest of all that every entry depends on: weights, configuration, machine.
        proofs: how often replayed values were held against computed ones of another grouping.
        seconds: how long a pass takes that is computed.
    """

    graph: Graph
    cut: Cut
    samples: int
    stations: list[Station]
    key: bytes
    proofs: int = 0
    seconds: float = 0.0
    _by_place: dict[Place, Station | None] = field(default_factory=dict)

    @staticmethod
    def of(graph: Graph, cut: Cut, *, samples: int, key: bytes, layouts: Mapping[int, int]) -> Plan:
        """Make a cut ready; raises NotPerSample if a kept tensor can't be cut into samples."""
        stations = [
            _station(order, planned, samples, layouts.get(planned.index, 0))
            for order, planned in enumerate(cut.planned)
        ]
        plan = Plan(graph=graph, cut=cut, samples=samples, stations=stations, key=key)
        plan._by_place = _visible_places(graph, stations)
        return plan

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the modules whose calls have to be caught."""
        return frozenset(station.name for station in self.stations)

    def station(self, place: Place) -> Station | None:
        """What stands at a place; None if the module is to be called there.

        Raises:
            KeyError: the traced pass had no such call.
        """
        return self._by_place[place]

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that a replay does not call."""
        return [station.planned.call.module for station in self.stations]

    @property
    def last_kept(self) -> int:
        """The rank of the last station of which something is kept."""
        return max(station.order for station in self.stations if station.planned.is_kept)

    def seal(self, store: Store) -> Shelf:
        """Where it is marked that a cut was proven; the same in every process."""
        forms = [(station.name, station.layouts) for station in self.stations]
        return store.shelf(digest_of("proven", self.key, forms).hex(), 1, note="proven")

    @cached_property
    def has_blind_sources(self) -> bool:
        """Whether a planned call takes something that was computed from a placeholder."""
        return any(s.kind == "blind" for station in self.stations for s in station.planned.sources)

    @cached_property
    def chosen(self) -> list[int]:
        """The ranks of the stations at which content may have decided what they are given."""
        return [station.order for station in self.stations if station.planned.is_chosen]

    @cached_property
    def columns(self) -> int:
        """How many digests a pass gives of each sample: one a station, and one more of the chosen.

        The others tell what the station was given, where even a replay has to look at it.
        """
        return len(self.stations) + len(self.chosen)

    @cached_property
    def keeps_parts(self) -> bool:
        """Whether of some results a part alone is kept, and the rest is poison."""
        return any(station.keeps_part for station in self.stations)

    @cached_property
    def is_risky(self) -> bool:
        """Whether a replay may have to be given up when something live has run already."""
        return any(station.planned.after_live and station.order for station in self.stations)


class NotPerSample(ReplayError):
    """A kept tensor depends on the batch and has no dimension that counts samples."""

    def __init__(self, planned: PlannedCall) -> None:
        super().__init__(f"{planned.call.place}: its output depends on the batch as a whole")
        self.index = planned.index


def _station(order: int, planned: PlannedCall, samples: int, way: int) -> Station:
    settled: list[list[Layout]] = []
    for position, layout in enumerate(planned.call.layouts):
        plain = replace(layout, samples=samples)
        found = plain.candidates() if planned.varies[position] else []
        if not found and planned.varies[position] and planned.kept[position]:
            raise NotPerSample(planned)
        settled.append(found or [plain])
    # All kept results are taken to be cut alike: one count for the call is enough.
    ways = max((len(w) for w, kept in zip(settled, planned.kept, strict=True) if kept), default=1)
    return Station(
        order=order,
        name=planned.call.place.name,
        planned=planned,
        layouts=[
            found[min(way, len(found) - 1)].only(part)
            for found, part in zip(settled, planned.parts, strict=True)
        ],
        ways_to_cut=ways,
    )


def _visible_places(graph: Graph, stations: Sequence[Station]) -> dict[Place, Station | None]:
    """Places counted as a replay counts them: calls inside planned ones do not happen there."""
    by_index = {station.planned.index: station for station in stations}
    names = {station.name for station in stations}
    turns: Counter[str] = Counter()
    places: dict[Place, Station | None] = {}
    index = 0
    while index < len(graph.calls):
        name = graph.calls[index].place.name
        station = by_index.get(index)
        if name in names:
            places[Place(name, turns[name])] = station
            turns[name] += 1
        index = graph.calls[index].end if station is not None else index + 1
    return places
