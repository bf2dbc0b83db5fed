"""A freezer's state as plain data, and whether a saved one fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from frostline.errors import ScheduleError
from frostline.naming import take_inventory
from frostline.proof.fingerprint import whole_fingerprint
from frostline.schedules import Layout, Schedule, to_plain
from frostline.units import format_names

FORMAT = 1

_KEYS = ("schedule", "units", "position", "state", "trains", "rates", "signals", "optimizer")


def identity(schedule: Schedule, layout: Layout) -> dict[str, Any]:
    """What a saved state has to have in common with the freezer that loads it."""
    return {
        "frostline": FORMAT,
        "schedule": to_plain(schedule),
        "units": {unit.name: list(unit.parameters) for unit in layout.units},
    }


def refuse_misfit(
    state: Mapping[str, Any], schedule: Schedule, layout: Layout, model: nn.Module
) -> None:
    """Raise ScheduleError unless the state was saved with this schedule, on this model's weights.

    Args:
        state: what ``freezer.state_dict()`` gave.
        schedule: the schedule that is to go on.
        layout: the units of the model.
        model: the model, its weights loaded.
    """
    missing = [key for key in _KEYS if key not in state]
    if missing or state.get("frostline") != FORMAT:
        raise ScheduleError(
            "this is no saved freezer (what freezer.state_dict() gives, format"
            f" {FORMAT}): missing {missing}, format {state.get('frostline')!r}"
        )
    _refuse_other_schedule(state["schedule"], to_plain(schedule))
    units = {unit.name: list(unit.parameters) for unit in layout.units}
    if state["units"] != units:
        saved = set(state["units"])
        gone, new = sorted(saved - set(units)), sorted(set(units) - saved)
        changed = [n for n in units if n in saved and units[n] != state["units"][n]]
        parts = [
            f"{word} {format_names(names)}"
            for word, names in (("without", gone), ("with", new), ("another", changed))
            if names
        ]
        raise ScheduleError(
            "the state was saved for a model with other parts: this one is"
            f" {', '.join(parts) or 'in another order'}"
        )
    _refuse_other_content(state.get("frozen", {}), model)


def _refuse_other_schedule(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    if saved == present:
        return
    if saved["schedule"] != present["schedule"]:
        raise ScheduleError(
            f"the state was saved by the schedule {saved['schedule']!r}, and this freezer has"
            f" {present['schedule']!r}"
        )
    differing = [key for key in present if saved.get(key) != present[key]]
    key = differing[0] if differing else "schedule"
    raise ScheduleError(
        f"the state was saved by {saved['schedule']} with {key}={saved.get(key)!r}, and this"
        f" freezer has {key}={present.get(key)!r}"
    )


def _refuse_other_content(frozen: Mapping[str, str], model: nn.Module) -> None:
    inventory = take_inventory(model)
    tensors = {alias.name: alias.tensor for group in inventory.groups for alias in group.firsts}
    tensors |= {alias.name: alias.tensor for alias in inventory.buffers}
    for name, digest in frozen.items():
        if name not in tensors or whole_fingerprint(tensors[name]) != digest:
            raise ScheduleError(
                f"{name} was frozen with other content: load the model's weights first"
                " (model.load_state_dict), then the freezer's state"
            )
