"""A model as schedules see it: an ordered row of units, from the input up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from frostline.errors import ScheduleError
from frostline.naming import Inventory, TensorGroup, take_inventory
from frostline.selection import SelectorLike, as_selector
from frostline.selection.blocks import Blocks, blocks_in

Grain = Literal["block", "tensor"]
"""What a unit is: a block, with the stem and the head as one unit each, or a single tensor."""

Role = Literal["stem", "block", "head"]
"""Where a unit lies: before the blocks, in or as one, after them."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is frozen or trained as one.

    Attributes:
        name: the block's canonical name, ``stem``, ``head``, or the tensor's name.
        role: where it lies.
        parameters: canonical names of its parameters; tied ones under their first name.
        numel: number of scalars.
    """

    name: str
    role: Role
    parameters: tuple[str, ...]
    numel: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A model's units, ordered from the input up.

    Attributes:
        units: the units; every parameter that a schedule may touch is in exactly one.
        inventory: what selectors are resolved against.
    """

    units: tuple[Unit, ...]
    inventory: Inventory = field(repr=False, compare=False)

    @property
    def names(self) -> frozenset[str]:
        """Names of all units."""
        return frozenset(unit.name for unit in self.units)

    def of_role(self, role: Role) -> tuple[str, ...]:
        """Names of the units that lie there, in order."""
        return tuple(unit.name for unit in self.units if unit.role == role)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks, or of the tensors in them, in order."""
        return self.of_role("block")

    @property
    def head(self) -> tuple[str, ...]:
        """Names of what lies after the last block; where nothing does, the last block itself.

        A model always has something to train: no schedule freezes these by itself.
        """
        return self.of_role("head") or (self.units[-1].name,)

    @property
    def body(self) -> tuple[str, ...]:
        """Names of all that is not the :attr:`head`, in order."""
        top = set(self.head)
        return tuple(unit.name for unit in self.units if unit.name not in top)

    def above(self, count: int) -> frozenset[str]:
        """What trains when the first ``count`` blocks are frozen, and with them the stem.

        The :attr:`head` is left even if ``count`` reaches it; 0 freezes nothing.
        """
        frozen = {*self.blocks[:count], *(self.of_role("stem") if count else ())}
        return (self.names - frozen) | frozenset(self.head)

    def below(self, trains: frozenset[str]) -> int:
        """How many blocks in a row, counted from the input, do not train."""
        for count, name in enumerate(self.blocks):
            if name in trains:
                return count
        return len(self.blocks)

    def find(self, selector: SelectorLike) -> frozenset[str]:
        """Names of the units that hold what a selector matches.

        Raises:
            SelectorError: (a ValueError) it matches nothing.
            ScheduleError: (a ValueError) it matches only what was kept from the schedule.
        """
        chosen = as_selector(selector)
        wanted = {
            name
            for index in chosen.find(self.inventory)
            for name in self.inventory.groups[index].named
        }
        found = [unit.name for unit in self.units if not wanted.isdisjoint(unit.parameters)]
        if not found:
            raise ScheduleError(
                f"'{chosen}' selects only parameters that this schedule does not touch: they are"
                " fixed, or can't train (integers)"
            )
        return frozenset(found)


def layout_of(
    model: nn.Module,
    *,
    grain: Grain = "block",
    named: Blocks | str | Sequence[str] | None = None,
    fixed: SelectorLike | None = None,
) -> Layout:
    """The units of a model.

    Args:
        model: the model, wrapped or not.
        grain: whether units are blocks or tensors.
        named: the blocks, if they are not to be found by :func:`frostline.blocks`.
        fixed: what no schedule may touch.

    Raises:
        FrostlineError: no blocks are found, or nothing is left that can train.

    >>> from torch import nn
    >>> model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 2))
    >>> [(unit.name, unit.role) for unit in layout_of(model, named=["0", "1", "2"]).units]
    [('0', 'block'), ('1', 'block'), ('2', 'block'), ('head', 'head')]
    """
    inventory = take_inventory(model)
    found = named if isinstance(named, Blocks) else blocks_in(inventory, named)
    left_alone = set() if fixed is None else set(as_selector(fixed).find(inventory))
    rows: list[list[TensorGroup]] = [[] for _ in found.layers]
    for index, group in enumerate(inventory.groups):
        if index not in left_alone and any(_can_train(p) for p in group.named.values()):
            # Tied tensors belong to the highest of their places: an output head that is tied to
            # the embedding has to train as long as the head does.
            rows[max(found.layer_of(alias.name) for alias in group.aliases)].append(group)
    units: list[Unit] = []
    for rank, (name, groups) in enumerate(zip(["stem", *found.names, "head"], rows, strict=True)):
        role: Role = "head" if rank == len(rows) - 1 else "block" if rank else "stem"
        if grain == "tensor":
            units += [_unit(group.name, role, [group]) for group in groups]
        elif groups:
            units.append(_unit(name, role, groups))
    if not units:
        raise ScheduleError(f"{type(model).__name__} has no parameter that a schedule may train")
    return Layout(units=tuple(units), inventory=inventory)


def _unit(name: str, role: Role, groups: list[TensorGroup]) -> Unit:
    return Unit(
        name=name,
        role=role,
        parameters=tuple(name for group in groups for name in group.named),
        numel=sum(group.numel for group in groups),
    )


def _can_train(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()
