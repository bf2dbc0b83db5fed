"""Which values of a traced pass may change from epoch to epoch; what speaks against each call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from frostline.replay.graph import Call, Graph, Operation

_COMPILED = (
    "it is compiled, and torch may change its last bits whenever it compiles anew: compile what"
    " trains alone, or accept that with rounding=True"
)
FROM_TRAINABLE = "a trainable value flows into it"
_FROM_ELSEWHERE = "it reads a tensor that is neither its input nor its own"


@dataclass(kw_only=True)
class Exclusions:
    """What further passes have shown, beyond the traced one.

    Attributes:
        split: calls that are not to be taken whole → why; the calls inside may be.
        varying: values that depend on more than a sample's own input → why.
        layouts: planned calls → which way of cutting their results into samples is tried.
        accepts_rounding: whether rows may be grouped by content, which changes last bits.
        has_rounded: whether a value was let pass of which the last bits differed.
        keep_as: the dtype in which wider floating values are kept; None if all keep their bits.
        keeps_whole: whether values are kept whole of which only a part seems to be read.
    """

    split: dict[int, str] = field(default_factory=dict)
    varying: dict[int, str] = field(default_factory=dict)
    layouts: dict[int, int] = field(default_factory=dict)
    accepts_rounding: bool = False
    has_rounded: bool = False
    keep_as: torch.dtype | None = None
    keeps_whole: bool = False


class Liveness:
    """What of a pass is live: it descends from something that trains, or is random or moving.

    Args:
        graph: the pass.
        exclusions: what further passes have shown.

    Attributes:
        live: live values.
        live_operations: operations that read or make them.
        constant: values that depend on the model's frozen tensors alone.
        made_by: values → the operations that made them.
        causes: live values → why they are live.
        why: calls → why they can't be taken whole.
    """

    def __init__(self, graph: Graph, exclusions: Exclusions) -> None:
        self._graph = graph
        self._exclusions = exclusions
        self.made_by: dict[int, int] = {}
        for number, operation in enumerate(graph.operations):
            for value in operation.writes:
                self.made_by[value] = number
        self.constant = set(graph.constant)
        self.live: set[int] = set()
        self.live_operations: set[int] = set()
        self.causes: dict[int, str] = {}
        self.why: dict[int, str] = {}
        self._find_live()
        self._find_refusals()

    def is_made_inside(self, value: int, index: int) -> bool:
        """Whether a call, or one inside of it, made a value."""
        made_by = self.made_by.get(value)
        return made_by is not None and self._graph.is_inside(
            self._graph.operations[made_by].call, index
        )

    # What may change from epoch to epoch.

    def _find_live(self) -> None:
        graph, varying = self._graph, self._exclusions.varying
        self.live |= graph.trainable | graph.foreign | varying.keys()
        self.causes.update(dict.fromkeys(graph.trainable, FROM_TRAINABLE))
        self.causes.update(dict.fromkeys(graph.foreign - graph.trainable, _FROM_ELSEWHERE))
        self.causes.update(varying)
        moving = {i for i, call in enumerate(graph.calls) if call.effect is not None}
        for number, operation in enumerate(graph.operations):
            reads = (*operation.reads, *operation.overwrites)
            is_live = (
                operation.is_random
                or operation.call in moving
                or self._is_unequal(operation)
                or any(value in self.live for value in reads)
            )
            if is_live:
                self.live_operations.add(number)
                self.live.update(operation.writes)
                why = self._why_operation(operation)
                for value in operation.writes:
                    self.causes.setdefault(value, why)
            elif all(value in self.constant for value in reads):
                self.constant.update(operation.writes)

    # What speaks against a call.

    def _find_refusals(self) -> None:
        graph = self._graph
        for index, call in enumerate(graph.calls):
            if call.trains:
                self._refuse(index, "it trains")
            if call.effect is not None:
                self._refuse_around(index, call.effect)
            if call.is_hooked:
                self._refuse_around(index, "a hook hangs on it, which would not run")
            if call.is_compiled and not self._exclusions.accepts_rounding:
                self._refuse_around(index, _COMPILED)
            if call.unfit is not None:
                self._refuse(index, call.unfit)
            if index in self._exclusions.split:
                self._refuse_around(index, self._exclusions.split[index])
            if any(value in self.live for value in call.arguments):
                self._refuse(index, self._why_live(call.arguments))
        inputs = set(graph.inputs)
        for number, operation in enumerate(graph.operations):
            if number in self.live_operations:
                self._refuse_around(operation.call, self._why_operation(operation))
            if any(value in inputs for value in operation.overwrites):
                self._refuse_around(operation.call, "it writes into the batch that it is given")
        for escape in graph.escapes:
            if escape.value not in self.constant:
                self._refuse_around(escape.call, f"it branches on content ({escape.how})")
        for index, call in enumerate(graph.calls):
            varying = [v for v in call.results if v in self._exclusions.varying]
            if varying:
                self._refuse(index, self._exclusions.varying[varying[0]])
            elif any(value in self.live for value in call.results):
                self._refuse(index, "what it returns depends on what trains, or needs a gradient")
        self._refuse_side_channels()

    def _refuse_side_channels(self) -> None:
        for reader, values in self._all_reads():
            for value in values:
                made_by = self.made_by.get(value)
                if made_by is None:
                    continue
                for index in self._graph.around(self._graph.operations[made_by].call):
                    if self._graph.is_inside(reader, index) and reader >= 0:
                        break
                    if value not in self._graph.calls[index].results:
                        self._refuse(index, "a value from inside is used outside, past its output")
        for index, call in enumerate(self._graph.calls):
            for position, value in enumerate(call.results):
                if not self.is_made_inside(value, index) and call.handed[position] is None:
                    self._refuse(index, "it returns a view of something that it did not make")

    def _all_reads(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        for operation in self._graph.operations:
            yield operation.call, (*operation.reads, *operation.overwrites)
        for escape in self._graph.escapes:
            yield escape.call, (escape.value,)
        yield -1, tuple(self._graph.results)

    def _refuse(self, index: int, why: str) -> None:
        self.why.setdefault(index, why)

    def _refuse_around(self, index: int, why: str) -> None:
        for around in self._graph.around(index):
            self._refuse(around, why)

    def _why_operation(self, operation: Operation) -> str:
        if operation.is_random:
            return _why_random(self._graph.calls[operation.call])
        if self._is_unequal(operation) and operation.is_uneven:
            return (
                f"the batch does not fill the processor's registers ({operation.name}), so that the"
                " last sample is rounded in another way; take a batch size that is a multiple of 32"
            )
        if self._is_unequal(operation):
            return f"it groups rows by their content ({operation.name}), as mixtures of experts do"
        effect = self._graph.calls[operation.call].effect
        if effect is not None:
            return effect
        return self._why_live((*operation.reads, *operation.overwrites))

    def _why_live(self, values: Sequence[int]) -> str:
        return next(
            (self.causes[value] for value in values if value in self.causes), FROM_TRAINABLE
        )

    def _is_unequal(self, operation: Operation) -> bool:
        """Whether a sample's last bits depend on its batch-mates, or on its place among them."""
        return not self._exclusions.accepts_rounding and self.rounds(operation)

    def rounds(self, operation: Operation) -> bool:
        """Whether an operation may give a sample other last bits in another batch."""
        if not (operation.mixes or operation.is_uneven):
            return False
        return not all(value in self.constant for value in operation.reads)


def _why_random(call: Call) -> str:
    if not call.module.training:
        return "it draws random numbers"
    name = call.place.name or "the model"
    return (
        "it draws random numbers, as it runs in train mode: set its rate to 0, or put"
        f" {name} in eval mode after each model.train()"
    )
