"""The frost line of a traced pass: which calls need not be made again, and what is kept of them.

Pure functions from a :class:`~frostline.replay.graph.Graph` to a :class:`Cut`; nothing here runs
the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from frostline.replay.branches import first_answer
from frostline.replay.graph import FROM_OUTSIDE, Call, Graph, Place
from frostline.replay.liveness import FROM_TRAINABLE, Exclusions, Liveness
from frostline.replay.parts import part_of, partial_reads
from frostline.replay.windows import Box, Window

Kind = Literal["constant", "chosen", "content", "call", "blind"]


class Source(NamedTuple):
    """Where an argument of a planned call comes from.

    Attributes:
        kind: ``constant`` from the model alone; ``chosen`` the same, where content may have decided
            which; ``content`` from the batch or from what is kept, so it is there in a replay and
            can be checked; ``call`` straight from another planned call; ``blind`` from a skipped
            call by operations between modules.
        call: for ``call``, the index of that call in the graph.
        results: which of its results; several, where they are views of one piece of memory.
        is_exact: whether it must be that very tensor, as content may have decided what it is.
    """

    kind: Kind
    call: int = -1
    results: tuple[int, ...] = ()
    is_exact: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedCall:
    """A frozen call that a replay does not make.

    Attributes:
        index: its index in the graph.
        call: the call.
        handed: for each result which argument it is, if it is one.
        kept: for each result whether live code, or the caller, uses it.
        parts: for each result which part of it is used; None if that may be all.
        sources: where each tensor argument comes from.
        written: results into which code between modules writes.
        varies: for each result whether it depends on the batch.
        mutates: whether it writes into an argument and gives it back.
        is_chosen: whether content may have decided what it is given, so that this is looked at
            in every replay.
        can_rerun: whether all its arguments are there in a replay, so that it can be made.
        after_live: whether something live has run before it.
    """

    index: int
    call: Call
    handed: tuple[int | None, ...]
    kept: tuple[bool, ...]
    parts: tuple[Box | None, ...]
    sources: tuple[Source, ...]
    written: frozenset[int]
    varies: tuple[bool, ...]
    mutates: bool
    is_chosen: bool
    can_rerun: bool
    after_live: bool

    @property
    def is_kept(self) -> bool:
        """Whether anything of it is kept; else a placeholder stands in for all of it."""
        return any(self.kept)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """The frost line.

    Attributes:
        planned: the maximal frozen calls, in order.
        refused: calls in which nothing trains and that are made all the same → why.
        stopped_by: why a call in which nothing trains gets values that change, if it does so for
            another reason than that they are trained.
        needed_inputs: for each tensor argument of the top-level call, whether live code uses it.
        hidden_inputs: positions of the top-level call's tensor arguments that reach a planned
            call by another way than its arguments.
        glue_tensors: names of the model's tensors that code between modules uses on frozen values.
        hides: whether an opaque object that the top-level call returns lacks tensors in a replay.
        rounds: whether the last bits of what is kept may depend on the rest of the batch.
    """

    planned: tuple[PlannedCall, ...]
    refused: Mapping[Place, str]
    stopped_by: str | None
    needed_inputs: tuple[bool, ...]
    hidden_inputs: tuple[int, ...]
    glue_tensors: frozenset[str]
    hides: bool
    rounds: bool

    @property
    def keeps_something(self) -> bool:
        """Whether there is anything to replay."""
        return any(planned.is_kept for planned in self.planned)


def find_cut(graph: Graph, exclusions: Exclusions | None = None) -> Cut:
    """Find the frost line of a traced pass."""
    return _Analysis(graph, exclusions or Exclusions()).cut()


class _Analysis:
    def __init__(self, graph: Graph, exclusions: Exclusions) -> None:
        self._graph = graph
        self._liveness = Liveness(graph, exclusions)
        self._made_by = self._liveness.made_by
        self._owner: dict[int, int] = {}
        self._planned = self._maximal()
        self._answer = first_answer(graph, self._inside, self._liveness.constant)
        self._looked_at = self._between(
            value
            for index in self._planned
            for place, value in enumerate(graph.calls[index].arguments)
            if self._is_chosen(index, place)
        )
        self._reads = (
            {}
            if exclusions.keeps_whole
            else partial_reads(graph, self._inside, self._liveness.constant)
        )

    # The calls that are left out.

    def _maximal(self) -> list[int]:
        """Frozen calls that no frozen call encloses; they own the operations inside."""
        busy = {
            around
            for operation in self._graph.operations
            for around in self._graph.around(operation.call)
        }
        planned: list[int] = []
        index = 0
        while index < len(self._graph.calls):
            # A call without operations hands its input through, or views it: it costs nothing.
            if index in self._liveness.why or index not in busy:
                index += 1
                continue
            planned.append(index)
            index = self._graph.calls[index].end
        spans = [(index, self._graph.calls[index].end) for index in planned]
        for number, operation in enumerate(self._graph.operations):
            for start, end in spans:
                if start <= operation.call < end:
                    self._owner[number] = start
                    break
        self._inside = {call for start, end in spans for call in range(start, end)}
        return planned

    # What of them is kept.

    def cut(self) -> Cut:
        graph = self._graph
        needed = self._needed()
        kept = {
            value
            for index in self._planned
            for position, value in enumerate(graph.calls[index].results)
            if value in needed and self._handed(index, position) is None
        }
        glue = [
            operation
            for number, operation in enumerate(graph.operations)
            if number not in self._owner and number not in self._liveness.live_operations
        ]
        overwritten = {value for operation in glue for value in operation.overwrites}
        owned = {value for number in self._owner for value in graph.operations[number].writes}
        return Cut(
            planned=tuple(self._plan(index, kept, overwritten) for index in self._planned),
            refused={
                graph.calls[index].place: why
                for index, why in sorted(self._liveness.why.items())
                if self._is_worth_telling(index)
            },
            stopped_by=self._stopped_by(),
            needed_inputs=tuple(value in needed for value in graph.inputs),
            hidden_inputs=self._hidden_inputs(),
            glue_tensors=frozenset(
                graph.names[value]
                for operation in glue
                for value in operation.reads
                if value in graph.names
            ),
            hides=any(value in owned for value in graph.hidden),
            rounds=any(self._liveness.rounds(graph.operations[number]) for number in self._owner)
            or any(graph.calls[index].is_compiled for index in self._inside),
        )

    def _needed(self) -> set[int]:
        """Values that live code, or the caller, uses, straight or by operations between modules."""
        graph = self._graph
        waiting = [*graph.results, *self._looked_at]
        inputs = set(graph.inputs)
        for number, operation in enumerate(graph.operations):
            if number in self._liveness.live_operations:
                waiting += [*operation.reads, *operation.overwrites]
            elif number not in self._owner and any(v in inputs for v in operation.overwrites):
                waiting += operation.overwrites  # it is written to, so it has to be there
        waiting += [escape.value for escape in graph.escapes if escape.call not in self._inside]
        for index, call in enumerate(graph.calls):
            if call.is_hooked and index not in self._inside:
                waiting += [*call.arguments, *call.results]
            parent = None if call.parent is None else graph.calls[call.parent]
            if parent is not None and parent.effect is not None:
                waiting += call.results  # it may leave them somewhere
        return self._between(waiting)

    def _between(self, values: Iterable[int]) -> set[int]:
        """The values, and those of which operations between modules have computed them."""
        waiting, found = [*values], set[int]()
        while waiting:
            value = waiting.pop()
            if value in found:
                continue
            found.add(value)
            made_by = self._made_by.get(value)
            if made_by is not None and made_by not in self._owner:
                operation = self._graph.operations[made_by]
                waiting += [*operation.reads, *operation.overwrites]
        return found

    def _is_chosen(self, index: int, place: int) -> bool:
        """Whether content may have decided what an argument is, so that it has to be looked at.

        Where it is the very tensor that another planned call returned, or that was in the batch,
        that it is the same one is enough.
        """
        follows = self._graph.calls[index].first_operation >= self._answer
        return follows and not self._exact_results(index, place)

    def _exact_results(self, index: int, place: int) -> tuple[int, ...]:
        """Which results of a planned call an argument is, the tensor itself and no view of it.

        Or which of the inputs.
        """
        call = self._graph.calls[index]
        made_by = self._made_by.get(call.arguments[place])
        owner = FROM_OUTSIDE if made_by is None else self._owner.get(made_by)
        return tuple(position for by, position in call.returned_by[place] if by == owner)

    def _plan(self, index: int, kept: set[int], overwritten: set[int]) -> PlannedCall:
        call = self._graph.calls[index]
        places = range(len(call.results))
        arguments = range(len(call.arguments))
        sources = tuple(self._source(index, place, kept) for place in arguments)
        return PlannedCall(
            index=index,
            call=call,
            handed=tuple(self._handed(index, position) for position in places),
            kept=tuple(
                call.results[position] in kept and self._handed(index, position) is None
                for position in places
            ),
            parts=tuple(map(self._part, call.results, call.windows)),
            sources=sources,
            written=frozenset(p for p in places if call.results[p] in overwritten),
            varies=tuple(value not in self._liveness.constant for value in call.results),
            mutates=any(
                call.handed[p] is not None and self._handed(index, p) is None for p in places
            ),
            is_chosen=any(self._is_chosen(index, place) for place in arguments),
            can_rerun=all(self._is_there(source, kept) for source in sources),
            after_live=any(
                number < call.first_operation for number in self._liveness.live_operations
            ),
        )

    def _part(self, value: int, whole: Window | None) -> Box | None:
        return None if value in self._looked_at else part_of(self._reads.get(value, ()), whole)

    def _handed(self, index: int, position: int) -> int | None:
        """Which argument a result is; none if the call wrote into it before it gave it back."""
        call = self._graph.calls[index]
        return (
            None
            if self._liveness.is_made_inside(call.results[position], index)
            else call.handed[position]
        )

    def _is_there(self, source: Source, kept: set[int]) -> bool:
        if source.kind == "call":
            call, position = self._graph.calls[source.call], source.results[0]
            is_whole = self._part(call.results[position], call.windows[position]) is None
            return is_whole and call.results[position] in kept
        return source.kind != "blind"

    def _source(self, index: int, place: int, kept: set[int]) -> Source:
        call = self._graph.calls[index]
        value = call.arguments[place]
        if self._is_chosen(index, place):
            # What it was computed from is kept, so that it is there.
            return Source("chosen" if value in self._liveness.constant else "content")
        follows = call.first_operation >= self._answer
        if value in self._liveness.constant and not follows:
            return Source("constant")
        owner = self._owner.get(self._made_by.get(value, -1))
        if owner is not None and follows:
            return Source("call", owner, self._exact_results(index, place), is_exact=True)
        if owner is not None:
            results = self._graph.calls[owner].results
            return Source("call", owner, tuple(p for p, v in enumerate(results) if v == value))
        kind: Kind = "blind" if self._is_blind(value, kept) else "content"
        exact = self._exact_results(index, place) if follows else ()
        return Source(kind, FROM_OUTSIDE, exact, is_exact=bool(exact))

    def _hidden_inputs(self) -> tuple[int, ...]:
        """Inputs that planned calls read though they are not among their arguments."""
        graph = self._graph
        reached: set[int] = set()
        for index in self._planned:
            call = graph.calls[index]
            for number, owner in self._owner.items():
                operation = graph.operations[number]
                for value in (*operation.reads, *operation.overwrites) if owner == index else ():
                    if (
                        not self._liveness.is_made_inside(value, index)
                        and value not in call.arguments
                    ):
                        reached |= self._leaves(value)
        return tuple(place for place, value in enumerate(graph.inputs) if value in reached)

    def _leaves(self, value: int) -> set[int]:
        """The values from outside the pass from which a value was computed."""
        waiting, seen, leaves = [value], set(), set()
        while waiting:
            value = waiting.pop()
            if value in seen:
                continue
            seen.add(value)
            made_by = self._made_by.get(value)
            if made_by is None:
                leaves.add(value)
            else:
                operation = self._graph.operations[made_by]
                waiting += [*operation.reads, *operation.overwrites]
        return leaves

    def _is_blind(self, value: int, kept: set[int]) -> bool:
        """Whether a skipped call's result is among what the value was computed from."""
        waiting, seen = [value], set()
        while waiting:
            value = waiting.pop()
            if value in seen or value in kept:
                continue
            seen.add(value)
            made_by = self._made_by.get(value)
            if made_by is None:
                continue
            if made_by in self._owner:
                return True
            operation = self._graph.operations[made_by]
            waiting += [*operation.reads, *operation.overwrites]
        return False

    def _is_worth_telling(self, index: int) -> bool:
        call = self._graph.calls[index]
        takes_live = any(value in self._liveness.live for value in call.arguments)
        return not call.trains and not takes_live and index not in self._inside

    def _stopped_by(self) -> str | None:
        """Why a call in which nothing trains takes live values, other than that they train."""
        for call in self._graph.calls:
            for value in () if call.trains else call.arguments:
                cause = self._liveness.causes.get(value, FROM_TRAINABLE)
                if cause != FROM_TRAINABLE:
                    return f"{call.place} takes what is not the same each time: {cause}"
        return None
