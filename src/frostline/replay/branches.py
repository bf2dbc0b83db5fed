"""What content may have decided between the calls that a replay does not make.

Code between modules may ask a tensor something (``if mask.all():``) and go on by the answer, which
hangs on all samples of the batch. What it computes then can't be told from what was traced, unless
it is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from frostline.replay.graph import Graph


def first_answer(graph: Graph, skipped: Collection[int], constant: Collection[int]) -> float:
    """How many operations had run when code first got to know something that may change.

    Args:
        graph: the pass.
        skipped: indices of the calls that a replay does not make, with the ones inside of them.
        constant: values that are the same in every pass.

    Returns:
        Calls of which ``first_operation`` is less were made in any case; infinite if all were.
    """
    told = [
        escape.after
        for escape in graph.escapes
        if escape.call not in skipped and escape.value not in constant
    ]
    # A shape that hangs on content is known without asking.
    shaped = [
        number + 1
        for number, operation in enumerate(graph.operations)
        if operation.mixes
        and operation.call not in skipped
        and not all(value in constant for value in operation.reads)
    ]
    return min((*told, *shaped), default=math.inf)
