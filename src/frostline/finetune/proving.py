"""The proof of a whole run, over as many processes as it took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, cast

from torch import nn

from frostline.errors import FrozenChangedError
from frostline.finetune.engine import Engine
from frostline.finetune.result import ProofReport
from frostline.freezer import Freezer
from frostline.freezing import Frozen
from frostline.naming import take_inventory
from frostline.proof import Change

Record = Mapping[str, Mapping[str, str]]
"""``parameter`` and ``buffer`` → name → fingerprint."""


def record(frozen: Frozen) -> Record:
    """Fingerprints of all that is frozen, as ``frozen.json`` keeps them for other processes."""
    prints = frozen.fingerprints()
    kinds = {"parameter": frozen.names, "buffer": frozen.buffers}
    return {kind: {name: prints[name] for name in names} for kind, names in kinds.items()}


def prove(frozen: Frozen, model: nn.Module, recorded: Record) -> ProofReport:
    """Compare all that is frozen with what it was before the run's first step.

    The handle knows what this process froze, to the element. What moved before, in a process
    that was interrupted or in the checkpoint between two, only the fingerprints can tell.

    Args:
        frozen: the freeze that this process made.
        model: the model that it froze.
        recorded: :func:`record` from the very start of the run.
    """
    start = time.perf_counter()
    changes: tuple[Change, ...] = ()
    try:
        if frozen.names:  # under a schedule the plan may freeze nothing
            frozen.verify()
    except FrozenChangedError as error:
        changes = error.changes
    named = {change.name for change in changes}
    now = record(frozen)
    earlier = [
        _earlier_change(name, cast('Literal["parameter", "buffer"]', kind), model)
        for kind, prints in recorded.items()
        for name, print_then in prints.items()
        if name not in named and now[kind].get(name) != print_then
    ]
    return ProofReport(
        parameters=len(frozen.names),
        buffers=len(frozen.buffers),
        seconds=time.perf_counter() - start,
        changes=(*changes, *earlier),
    )


def prove_schedule(freezer: Freezer, model: nn.Module, fixed: ProofReport) -> ProofReport:
    """Compare what is frozen at the end with what it was when it froze.

    What thawed before was proved then; across processes, the freezer's state has fingerprints.

    Args:
        freezer: what carried the schedule out.
        model: its model.
        fixed: the proof of what was frozen for the whole run.
    """
    start = time.perf_counter()
    try:
        freezer.verify()
        changes: tuple[Change, ...] = ()
    except FrozenChangedError as error:
        changes = error.changes
    named = {change.name for change in fixed.changes}
    names = freezer.state_dict()["frozen"].keys()
    # The freezer's handles cover the buffers of what the plan froze as well.
    buffers = {alias.name for alias in take_inventory(model).buffers} & names
    return replace(
        fixed,
        parameters=fixed.parameters + len(names - buffers),
        buffers=max(fixed.buffers, len(buffers)),
        seconds=fixed.seconds + time.perf_counter() - start,
        changes=(*fixed.changes, *(each for each in changes if each.name not in named)),
    )


def among_ranks(proof: ProofReport, engine: Engine) -> ProofReport:
    """One proof of all processes: a tensor that moved in any of them is in it once."""
    every = engine.gathered(proof.changes)
    changes = {change.name: change for found in reversed(every) for change in found}
    return replace(proof, changes=tuple(changes.values()))


def _earlier_change(name: str, kind: Literal["parameter", "buffer"], model: nn.Module) -> Change:
    inventory = take_inventory(model)
    aliases = (
        *(alias for group in inventory.groups for alias in group.aliases),
        *inventory.buffers,
    )
    sizes = {alias.name: alias.tensor.numel() for alias in aliases}
    return Change(
        name=name,
        kind=kind,
        elements=sizes.get(name, 0),
        moved=None,
        max_abs=float("nan"),
        cause="it moved before the run was resumed, or its checkpoint or plan was altered",
    )
