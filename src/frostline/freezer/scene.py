"""What signals are taken from: the model's units as parameters, and which of them train."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from frostline.naming import take_inventory, walk_modules
from frostline.schedules import Layout


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A model between two transitions.

    Attributes:
        model: the model.
        layout: its units.
        trains: names of the units that train.
        units: unit → its parameters by name, those that train alone.
        slots: where each of these parameters hangs: its module's dict, its key there, itself.
    """

    model: nn.Module
    layout: Layout
    trains: frozenset[str]
    units: dict[str, dict[str, nn.Parameter]]
    slots: tuple[tuple[dict[str, nn.Parameter | None], str, nn.Parameter], ...]

    def is_stale(self) -> bool:
        """Whether a parameter was replaced, as ``load_state_dict(assign=True)`` does."""
        return any(held.get(key) is not parameter for held, key, parameter in self.slots)

    @property
    def front(self) -> tuple[str, nn.Module] | None:
        """The lowest block that trains and its module; None if no block trains, or has none."""
        for name in self.layout.blocks:
            if name in self.trains:
                found = [module for path, module in walk_modules(self.model) if path == name]
                return (name, found[-1]) if found else None
        return None


def set_scene(model: nn.Module, layout: Layout, trains: frozenset[str]) -> Scene:
    """Look up the parameters of the units that train, as the model holds them now."""
    groups = take_inventory(model).groups
    firsts = {alias.name: alias for group in groups for alias in group.firsts}
    named = {name: parameter for group in groups for name, parameter in group.named.items()}
    units = {
        unit.name: {name: named[name] for name in unit.parameters}
        for unit in layout.units
        if unit.name in trains
    }
    slots = tuple(
        (firsts[name].owner._parameters, name.rpartition(".")[2], parameter)
        for held in units.values()
        for name, parameter in held.items()
    )
    return Scene(model=model, layout=layout, trains=trains, units=units, slots=slots)
