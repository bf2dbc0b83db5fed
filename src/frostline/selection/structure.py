"""Matching parameters by where they stand: module classes, children, definition order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from frostline.errors import SelectorError
from frostline.naming import Inventory, Placement
from frostline.selection.patterns import Matches, match_aliases
from frostline.selection.suggest import nearest


@dataclass(frozen=True)
class OfClass:
    """What lies in modules of a class: their own parameters and those of modules inside them.

    ``classes`` holds classes, or names of classes (``BatchNorm2d``, or qualified
    ``torch.nn.modules.batchnorm.BatchNorm2d``); subclasses count.
    """

    classes: tuple[type[nn.Module] | str, ...]

    def find(self, inventory: Inventory) -> Matches:
        """Groups held in, or below, a module of the class."""
        roots = {p.name for p in inventory.placements if self._accepts(p.module)}
        inside: dict[str, bool] = {}

        def is_inside(owner: str) -> bool:
            if owner not in inside:
                parent = owner.rpartition(".")[0]
                inside[owner] = owner in roots or (owner != "" and is_inside(parent))
            return inside[owner]

        return match_aliases(inventory, lambda alias: is_inside(alias.owner_name))

    def plain(self) -> str | dict[str, list[str]]:
        """``type:Name``, or an ``any`` of several."""
        written = [
            f"type:{c}" if isinstance(c, str) else f"type:{c.__module__}.{c.__qualname__}"
            for c in self.classes
        ]
        return written[0] if len(written) == 1 else {"any": written}

    def _accepts(self, module: nn.Module) -> bool:
        return any(
            class_named(module, wanted) if isinstance(wanted, str) else isinstance(module, wanted)
            for wanted in self.classes
        )


@dataclass(frozen=True)
class Where:
    """What a function of (name, parameter) accepts under at least one of its names."""

    accepts: Callable[[str, nn.Parameter], bool]

    def find(self, inventory: Inventory) -> Matches:
        """Groups with an alias for which the function returns true."""
        return match_aliases(
            inventory,
            lambda alias: (
                isinstance(alias.tensor, nn.Parameter)
                and bool(self.accepts(alias.name, alias.tensor))
            ),
        )

    def plain(self) -> str:
        """Raises SelectorError: a function has no written form."""
        raise SelectorError(
            "fl.where(...) is a function and cannot be written to a plan file: name the parameters"
            " by a glob, a regex ('re:...') or a class ('type:...')"
        )


@dataclass(frozen=True, eq=False)
class Members:
    """The parameters of given modules, or given parameters, by identity."""

    members: tuple[nn.Module | nn.Parameter, ...]

    def find(self, inventory: Inventory) -> Matches:
        """Groups of which a member is, or holds, a parameter."""
        wanted = {id(parameter) for parameter in self._parameters()}
        return match_aliases(inventory, lambda alias: id(alias.tensor) in wanted)

    def plain(self) -> str:
        """Raises SelectorError: an object has no written form."""
        raise SelectorError(
            "a module or parameter object cannot be written to a plan file: select it by its name"
        )

    def _parameters(self) -> Iterable[nn.Parameter]:
        for member in self.members:
            if isinstance(member, nn.Parameter):
                yield member
            else:
                yield from member.parameters()


@dataclass(frozen=True)
class Before:
    """Everything defined before a module or parameter, and no part of it."""

    name: str

    def find(self, inventory: Inventory) -> Matches:
        """Groups outside the target that have an alias defined before it."""
        target, start = self._locate(inventory)
        found = match_aliases(inventory, lambda alias: alias.position < start)
        inside = match_aliases(
            inventory, lambda alias: alias.name == target or alias.name.startswith(f"{target}.")
        )
        return {index: aliases for index, aliases in found.items() if index not in inside}

    def plain(self) -> str:
        """The selector as it is written in YAML and on the command line."""
        return f"before:{self.name}"

    def _locate(self, inventory: Inventory) -> tuple[str, int]:
        starts: dict[str, int] = {}
        for placement in inventory.placements[1:]:
            starts.setdefault(placement.name, placement.start)
        for group in inventory.groups:
            starts.update((alias.name, alias.position) for alias in group.aliases)
        name = the_one_named(self.name, list(starts), self.plain())
        return name, starts[name]


@dataclass(frozen=True)
class Children:
    """The first or last ``count`` children of a module, of those children that hold parameters."""

    count: int
    container: str
    end: Literal["first", "last"]

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or isinstance(self.count, bool):
            raise SelectorError(f"fl.{self.end} takes a whole number first, got {self.count!r}")
        if self.count < 1:
            raise SelectorError(f"selector {self.plain()!r} asks for {self.count}, not 1 or more")

    def find(self, inventory: Inventory) -> Matches:
        """Groups in the chosen children; raises SelectorError when there are too few children."""
        names = [p.name for p in inventory.placements]
        container = the_one_named(self.container, names, self.plain()) if self.container else ""
        children = children_with_parameters(inventory, container)
        if len(children) < self.count:
            raise SelectorError(
                f"selector {self.plain()!r} asks for {self.count} of the children of"
                f" {container or 'the model'!r}, which has {len(children)} with parameters"
                f" ({', '.join(children[:8])}{', …' if len(children) > 8 else ''})"
            )
        chosen = children[: self.count] if self.end == "first" else children[-self.count :]
        prefixes = tuple(f"{child}." for child in chosen)
        return match_aliases(inventory, lambda alias: alias.name.startswith(prefixes))

    def plain(self) -> str:
        """The selector as it is written in YAML and on the command line."""
        return f"{self.end}:{self.count}" + (f":{self.container}" if self.container else "")


def children_with_parameters(inventory: Inventory, container: str) -> list[str]:
    """Names of a module's direct children that hold parameters, in definition order.

    >>> from torch import nn
    >>> from frostline.naming import take_inventory
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> children_with_parameters(take_inventory(model), "")
    ['0', '2']
    """
    prefix = f"{container}." if container else ""
    owners = sorted(
        {
            (alias.position, alias.owner_name)
            for group in inventory.groups
            for alias in group.aliases
            if alias.owner_name.startswith(prefix) and alias.owner_name != container
        }
    )
    return list(dict.fromkeys(prefix + o[len(prefix) :].partition(".")[0] for _, o in owners))


def class_named(module: nn.Module, name: str) -> bool:
    """Whether the module's class, or a base of it, has this simple or qualified name."""
    # torch.nn.Linear is defined in torch.nn.modules.linear, and people write the former.
    package, _, simple = name.rpartition(".")
    named = getattr(sys.modules.get(package), simple, None) if package else None
    return any(
        base.__name__ == name or base is named or f"{base.__module__}.{base.__qualname__}" == name
        for base in type(module).__mro__
    )


def class_names(placements: Sequence[Placement]) -> list[str]:
    """The distinct class names in a model, for suggestions."""
    return list(dict.fromkeys(type(p.module).__name__ for p in placements))


def the_one_named(wanted: str, names: list[str], selector: str) -> str:
    """The one name that is, or ends in, ``wanted``; raises SelectorError for none or several."""
    if wanted in names:
        return wanted
    found = list(dict.fromkeys(name for name in names if name.endswith(f".{wanted}")))
    if len(found) == 1:
        return found[0]
    if not found:
        raise SelectorError(
            f"selector {selector!r}: the model has no {wanted!r}.{nearest(wanted, names)}"
        )
    raise SelectorError(
        f"selector {selector!r}: {wanted!r} could be {', '.join(map(repr, found[:4]))}"
        f"{' and others' if len(found) > 4 else ''}: write more of the name"
    )
