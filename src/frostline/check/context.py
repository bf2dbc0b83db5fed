"""What the rules look at: the model, what steps it, and what a probe step has shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from frostline.check.probe import Probe
from frostline.freezing.modes import pin_of
from frostline.freezing.plan import Plan
from frostline.naming import Inventory


class Part(NamedTuple):
    """A module, as far as freezing is concerned.

    Attributes:
        name: canonical name, the first one if it hangs in several places.
        module: the module.
        frozen: whether it has parameters, its own or below, and none of them trains. One without
            parameters goes with the modules that hold it.
    """

    name: str
    module: nn.Module
    frozen: bool

    @property
    def trains(self) -> bool:
        """Whether it runs in train mode: its flag says so and no freeze pins it to eval."""
        pin = pin_of(self.module)
        return self.module.training and (pin is None or not pin.wish.eval_mode)

    @property
    def rewrites(self) -> bool:
        """Whether nothing puts its buffers back after forward, as a freeze may be asked to."""
        pin = pin_of(self.module)
        return pin is None or not pin.restores


class Place(NamedTuple):
    """A parameter's place in an optimizer.

    Attributes:
        where: such as ``optimizer.param_groups[1]``.
        optimizer: the optimizer.
        group: the group.
        rank: its rank in the group.
    """

    where: str
    optimizer: Optimizer
    group: dict[str, Any]
    rank: int


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a rule may look at. Rules change none of it.

    Attributes:
        model: the model.
        inventory: its tensors under canonical names.
        optimizers: the optimizers that were given.
        schedulers: the schedulers that were given, with those inside of them.
        plan: the plan that the model is to follow, if one was given.
        probe: what a step on an example batch has shown, if one was given.
    """

    model: nn.Module
    inventory: Inventory
    optimizers: tuple[Optimizer, ...] = ()
    schedulers: tuple[Any, ...] = ()
    plan: Plan | None = None
    probe: Probe | None = None

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """First name → parameter, each object once, in definition order."""
        named = [item for group in self.inventory.groups for item in group.named.items()]
        positions = {a.name: a.position for g in self.inventory.groups for a in g.aliases}
        return dict(sorted(named, key=lambda item: positions[item[0]]))

    @cached_property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that require gradients."""
        return {name: p for name, p in self.parameters.items() if p.requires_grad}

    @cached_property
    def frozen(self) -> dict[str, nn.Parameter]:
        """The parameters that do not require gradients."""
        return {name: p for name, p in self.parameters.items() if not p.requires_grad}

    @cached_property
    def names(self) -> dict[int, str]:
        """Identity of a parameter → its first name."""
        return {id(parameter): name for name, parameter in self.parameters.items()}

    @cached_property
    def aliases(self) -> dict[int, set[str]]:
        """Identity of a parameter → all of its names."""
        found: dict[int, set[str]] = {}
        for group in self.inventory.groups:
            for alias in group.aliases:
                found.setdefault(id(alias.tensor), set()).add(alias.name)
        return found

    @cached_property
    def places(self) -> dict[int, list[Place]]:
        """Identity of a tensor → where the optimizers hold it."""
        found: dict[int, list[Place]] = {}
        for number, optimizer in enumerate(self.optimizers):
            called = "optimizer" if len(self.optimizers) == 1 else f"optimizer[{number}]"
            for index, group in enumerate(optimizer.param_groups):
                for rank, parameter in enumerate(group["params"]):
                    place = Place(f"{called}.param_groups[{index}]", optimizer, group, rank)
                    found.setdefault(id(parameter), []).append(place)
        return found

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The modules, each once, parents first."""
        return tuple(find_parts(self.inventory))

    @cached_property
    def uninitialised(self) -> tuple[str, ...]:
        """Parameters and buffers of lazy modules that have no shape yet."""
        tensors = [a for g in self.inventory.groups for a in g.aliases] + [*self.inventory.buffers]
        return tuple(alias.name for alias in tensors if is_lazy(alias.tensor))


def find_parts(inventory: Inventory) -> list[Part]:
    """Every module of a model once, and whether it is frozen.

    >>> from torch import nn
    >>> from frostline.naming import take_inventory
    >>> model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2))
    >>> _ = model[0].requires_grad_(False)
    >>> [part.name for part in find_parts(take_inventory(model)) if part.frozen]
    ['0', '0.0', '0.1']
    """
    holding: dict[str, set[bool]] = {}
    for group in inventory.groups:
        for alias in group.aliases:
            name = alias.owner_name
            while alias.tensor.requires_grad not in holding.setdefault(name, set()):
                holding[name].add(alias.tensor.requires_grad)
                if not name:
                    break
                name = name.rpartition(".")[0]
    verdicts: dict[str, bool] = {}
    by_module: dict[int, list[bool]] = {}
    for name, module, _ in inventory.placements:
        above = verdicts.get(name.rpartition(".")[0], False)
        verdicts[name] = holding[name] == {False} if name in holding else above
        by_module.setdefault(id(module), []).append(verdicts[name])
    seen: set[int] = set()
    parts = []
    for name, module, _ in inventory.placements:
        if id(module) not in seen:
            seen.add(id(module))
            # A dropout that also serves where something trains is not frozen.
            parts.append(Part(name, module, all(by_module[id(module)])))
    return parts
