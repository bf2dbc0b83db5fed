"""NaN in what a replayed pass returned: was a part read of which nothing was kept?"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from frostline.replay.catcher import Catcher
from frostline.replay.frame import Irregular, holds_nan
from frostline.replay.plan import Plan
from frostline.replay.runner import TopLevel, try_frame


def reads_poison(
    plan: Plan,
    call: TopLevel,
    ids: tuple[int, ...],
    output: Any,
    catcher: Catcher,
    remembered: Sequence[Sequence[bytes]] | None = None,
) -> bool:
    """Whether a replayed pass read a part of a value of which nothing was kept.

    Training that diverges gives NaN, too. So the pass is replayed once more, for trial, with
    ordinary numbers in the place of the poison.

    Args:
        plan: the cut.
        call: the call that was replayed.
        ids: the samples.
        output: what it returned.
        catcher: catches the calls of planned modules.
        remembered: as :class:`Frame` has it.
    """
    if not plan.keeps_parts or not holds_nan(output):
        return False
    with _filled_with_numbers(plan):
        try:
            again, _ = try_frame(plan, call, ids, "try", catcher, remembered=remembered)
        except Irregular:
            return False
    return not holds_nan(again)


def explained(plan: Plan) -> str:
    """What such a pass is told with."""
    places = ", ".join(str(s.planned.call.place) for s in plan.stations if s.keeps_part)
    return (
        f"a replayed pass read a part of what {places} returned that no earlier pass has read, so"
        " that it was not recorded: which part it is must not hang on something that replay can't"
        " see (a global variable, a counter, content). Give it to the model as an argument or an"
        " attribute, or call the model outside of replay"
    )


@contextlib.contextmanager
def _filled_with_numbers(plan: Plan) -> Iterator[None]:
    for station in plan.stations:
        station.fill = 1.0
    try:
        yield
    finally:
        for station in plan.stations:
            station.fill = math.nan
