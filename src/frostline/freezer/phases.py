"""The phases of a run, as far as they can be told before it, and what they mean to torch.compile.

A schedule is a pure function of the time and of signals. Where it wants no signals but the metric,
it can be asked beforehand what it will say, without a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import nn

from frostline.check.distributed import compiled_module
from frostline.errors import ScheduleError
from frostline.naming import walk_modules
from frostline.schedules import Layout, Progress, Schedule

_MOST_STEPS = 5_000
"""Steps for which a schedule is asked; of longer runs a part of the steps, spread out evenly."""


def foreseen(schedule: Schedule, beginning: Progress) -> tuple[frozenset[str], ...]:
    """The different sets of units that will train, in the order in which they come.

    A metric is taken never to get better. A schedule that goes by other signals is followed for
    as long as it asks for none.

    Args:
        schedule: the schedule.
        beginning: where the run stands before its first step.

    >>> from frostline.schedules import GradualUnfreeze, layout_of
    >>> model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    >>> layout = layout_of(model)
    >>> beginning = Progress(at="start", layout=layout, trains=layout.names, total_steps=500)
    >>> [len(trains) for trains in foreseen(GradualUnfreeze(), beginning)]
    [1, 2, 3, 4]
    """
    found: dict[frozenset[str], None] = {}
    try:
        state, trains = schedule.start(beginning), beginning.trains
        for moment in _moments(beginning):
            progress = replace(moment, trains=trains)
            decision = schedule.decide(progress, {}, state)
            state = decision.state
            if decision.train is not None:
                trains = decision.train
                found[trains] = None
            if schedule.needs(replace(progress, at="step", trains=trains), state) - {"metric"}:
                break
    except (ScheduleError, KeyError):
        pass  # it says so when it comes to that; or a signal was asked for in a step left out here
    return tuple(found)


def _moments(beginning: Progress) -> Iterator[Progress]:
    """The moments of a run at which a schedule is asked, but for its end."""
    yield beginning
    length, total = beginning.steps_per_epoch, beginning.total_steps
    stride = -(-total // _MOST_STEPS)
    for step in range(1, total):
        epoch = (step - 1) // length
        if step % stride == 0:
            yield replace(beginning, at="step", step=step, epoch=epoch)
        if step % length == 0:
            yield replace(beginning, at="epoch", step=step, epoch=epoch + 1, metric=0.0)


def recompile_note(model: nn.Module, schedule: Schedule, beginning: Progress) -> str | None:
    """What to set before a run in which a compiled part would be compiled too often.

    Args:
        model: the model, wrapped or not.
        schedule: the schedule.
        beginning: where the run stands before its first step.

    Returns:
        None if nothing is compiled, or torch's limit will do, as far as can be told.
    """
    compiled = {
        name: inner
        for name, module in walk_modules(model)
        if (inner := compiled_module(module)) is not None
    }
    if not compiled:
        return None
    # Imported here: dynamo takes a second to load, and a model that is compiled has loaded it.
    from torch._dynamo import config

    phases = foreseen(schedule, beginning)
    counts = _patterns(compiled, [_parameters(beginning.layout, trains) for trains in phases])
    name = max(counts, key=lambda name: counts[name])
    count, limit = counts[name], int(config.recompile_limit)
    if count <= limit:
        return None
    where = f"{name} is compiled" if name else "the model is compiled"
    return (
        f"{where}, and what trains in it takes {count} forms in this run or more. torch compiles"
        f" for each of them, evaluation apart, and after {limit} times it goes on uncompiled,"
        f" without an error: set torch._dynamo.config.recompile_limit = {2 * count} before the"
        " first step, or compile block by block"
    )


def _parameters(layout: Layout, trains: frozenset[str]) -> frozenset[str]:
    return frozenset(name for u in layout.units if u.name in trains for name in u.parameters)


def _patterns(compiled: dict[str, nn.Module], phases: Iterable[frozenset[str]]) -> dict[str, int]:
    """Compiled part → in how many forms its code is run, with that of others of its class."""
    forms: dict[type[nn.Module], set[frozenset[str]]] = {}
    for training in phases:
        for name, module in compiled.items():
            prefix = f"{name}." if name else ""
            inside = frozenset(n.removeprefix(prefix) for n in training if n.startswith(prefix))
            forms.setdefault(type(module), set()).add(inside)
    return {name: len(forms.get(type(module), ())) for name, module in compiled.items()}
