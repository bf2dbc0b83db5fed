"""What a checkpoint keeps of a freeze, and whether it is the one in force."""

from __future__ import annotations

from collections.abc import Mapping

from frostline.errors import PlanError
from frostline.freezing import Frozen
from frostline.units import format_names

Record = Mapping[str, Mapping[str, str]]
"""``parameters`` and ``buffers`` → name → fingerprint; plain types, for any checkpoint."""


def record_of(frozen: Frozen | None) -> Record:
    """What is frozen, by name and content.

    >>> import frostline as fl
    >>> from torch import nn
    >>> record_of(None)
    {'parameters': {}, 'buffers': {}}
    >>> list(record_of(fl.freeze(nn.Linear(2, 1), "bias"))["parameters"])
    ['bias']
    """
    if frozen is None:
        return {"parameters": {}, "buffers": {}}
    prints, buffers = frozen.fingerprints(), set(frozen.buffers)
    return {
        "parameters": {name: value for name, value in prints.items() if name not in buffers},
        "buffers": {name: value for name, value in prints.items() if name in buffers},
    }


def refuse_other_freeze(then: Record, now: Record) -> None:
    """Check that a checkpoint was saved with the freeze that is in force, its weights loaded.

    Buffers stand still where a module's last parameter is frozen, which a schedule may change in
    between; those that stood still then and do now must have the same content.

    Raises:
        PlanError: (a ValueError) other parameters are frozen, or their content is another.
    """
    saved, present = then["parameters"], now["parameters"]
    if saved.keys() != present.keys():
        only_one = format_names(sorted(saved.keys() ^ present.keys()))
        raise PlanError(
            f"the checkpoint was saved with another plan: {only_one} is frozen in one of the two"
            " alone. Freeze as in the run that was saved, or load its weights alone"
        )
    moved = [
        name
        for kind in ("parameters", "buffers")
        for name, value in then[kind].items()
        if now[kind].get(name, value) != value
    ]
    if moved:
        raise PlanError(
            f"{format_names(moved)} has not the content that was frozen: the checkpoint was"
            " altered, or what is frozen here comes from another base model"
        )
