"""Which parts of what frozen calls return are read, where that is not all.

A vision transformer's head reads one token of 197, a BERT pooler the first of 512: to keep that
token alone takes a fraction of the memory. It is safe where all that reads the value is seen, and
reads the same part every time. Whatever speaks against that means that all is kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable

from frostline.replay.graph import Graph
from frostline.replay.nest import holds_plain_values, open_nest
from frostline.replay.windows import Box, Window, box_of

_LEAST_GAIN = 2
"""How many times smaller a part must be: less is not worth filling the rest with NaN."""

Reads = dict[int, list[Window | None]]
"""Values → the windows through which they are read."""


def partial_reads(graph: Graph, skipped: Collection[int], constant: Collection[int]) -> Reads:
    """How each value is read outside of the calls that a replay does not make.

    Args:
        graph: the pass.
        skipped: indices of those calls, with the ones inside of them.
        constant: values that are the same in every pass.

    Returns:
        The reads of each value of which they are all; a value that is missing may be used whole.
        None, where NaN could not show itself in what the pass returns.
    """
    if (
        not graph.returns_floats
        or graph.has_own_backward
        or _depends_on_content(graph, skipped, constant)
    ):
        return {}
    reads: Reads = {}
    for operation in graph.operations:
        if operation.call not in skipped:
            for value, window in zip(operation.reads, operation.windows, strict=True):
                reads.setdefault(value, []).append(window)
    for value in _used_whole(graph, skipped) | _under_branches(graph, skipped, constant):
        reads.pop(value, None)
    return reads


def part_of(reads: Iterable[Window | None], whole: Window | None) -> Box | None:
    """The part of a result that is to be kept alone; None if all of it is.

    Of integers all is kept, since they have no value that poisons.

    Args:
        reads: all windows through which it is read; none if they are not known.
        whole: the result.

    >>> import torch
    >>> from frostline.replay.windows import window_of
    >>> x = torch.zeros(8, 4, 16)
    >>> part_of([window_of(x[:, 0])], window_of(x))
    ((0, 8), (0, 1), (0, 16))
    >>> part_of([window_of(x[:, 1:])], window_of(x)) is None
    True
    """
    if whole is None or not whole.dtype.is_floating_point:
        return None
    box = box_of(reads, whole)
    if box is None:
        return None
    size = math.prod(end - first for first, end in box)
    return box if _LEAST_GAIN * size <= math.prod(whole.sizes) else None


def _depends_on_content(graph: Graph, skipped: Collection[int], constant: Collection[int]) -> bool:
    """Whether a number that is not the same in every pass may say which part is read."""
    return any(
        escape.call not in skipped and not escape.is_flag and escape.value not in constant
        for escape in graph.escapes
    ) or any(
        operation.call not in skipped
        and operation.mixes
        and not all(value in constant for value in operation.reads)
        for operation in graph.operations
    )


def _under_branches(graph: Graph, skipped: Collection[int], constant: Collection[int]) -> set[int]:
    """Values of which code that also asks for a yes or no reads a part: perhaps by the answer.

    Only in the call that asks, where the answer may be returned to, and where it may be handed on
    to: many models ask a mask whether it masks anything.
    """
    asking = [
        escape.call
        for escape in graph.escapes
        if escape.call not in skipped and escape.is_flag and escape.value not in constant
    ]
    known: set[int] = set()
    while asking:
        call = asking.pop()
        parent = graph.calls[call].parent
        tells = holds_plain_values(open_nest(graph.calls[call].template))
        if call not in known and parent is not None and tells:
            asking.append(parent)
        known.add(call)
    for index, inner in enumerate(graph.calls):  # callers come before what they call
        if inner.parent in known and inner.takes_plain:
            known.add(index)
    read = {v for op in graph.operations if op.call in known for v in op.reads}
    return read.union(*(graph.viewed.get(call, ()) for call in known))


def _used_whole(graph: Graph, skipped: Collection[int]) -> set[int]:
    """Values that somebody holds who is not seen to read them, or that are written to."""
    whole = {*graph.results, *graph.hidden, *graph.left}
    for operation in graph.operations:
        if operation.call not in skipped:
            whole.update(operation.overwrites)
    whole.update(escape.value for escape in graph.escapes if escape.call not in skipped)
    for index, call in enumerate(graph.calls):
        if index in skipped:
            continue
        if call.is_hooked:
            whole.update((*call.arguments, *call.results))
        parent = None if call.parent is None else graph.calls[call.parent]
        if parent is not None and parent.effect is not None:
            whole.update(call.results)
    outermost = [index for index in skipped if graph.calls[index].parent not in skipped]
    whole |= _read_past_arguments(graph, outermost)
    # Of two results in one piece of memory, each would show its own part.
    returned = Counter(value for index in outermost for value in graph.calls[index].results)
    whole.update(value for value, times in returned.items() if times > 1)
    return whole


def _read_past_arguments(graph: Graph, outermost: Iterable[int]) -> set[int]:
    """What skipped calls take from elsewhere: should one be made after all, it needs all of it."""
    own = {index: set(graph.calls[index].arguments) for index in outermost}
    owner = {call: index for index in own for call in range(index, graph.calls[index].end)}
    past: set[int] = set()
    for operation in graph.operations:
        index = owner.get(operation.call)
        if index is not None:
            past.update(value for value in operation.reads if value not in own[index])
            own[index].update(operation.writes)
    return past
