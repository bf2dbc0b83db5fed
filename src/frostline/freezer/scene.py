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
    """

    model: nn.Module
    layout: Layout
    trains: frozenset[str]
    units: dict[str, dict[str, nn.Parameter]]

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
    named = {n: p for group in take_inventory(model).groups for n, p in group.named.items()}
    units = {
        unit.name: {name: named[name] for name in unit.parameters}
        for unit in layout.units
        if unit.name in trains
    }
    return Scene(model=model, layout=layout, trains=trains, units=units)
