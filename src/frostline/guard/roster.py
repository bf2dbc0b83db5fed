"""Who is frozen, who trains, and which optimizer group holds whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from frostline.freezing.flags import claims_on, is_held_frozen
from frostline.naming import Alias, Inventory


class Fault(NamedTuple):
    """A parameter and what is wrong with it."""

    name: str
    detail: str


class Roster:
    """A model's parameters as they stood at one moment: where they hang, and which of them train.

    Attributes:
        named: first name → parameter, each parameter once.
        frozen: those that must not move.
        trainable: those that train.
    """

    def __init__(self, inventory: Inventory, by_hand: Mapping[int, nn.Parameter]) -> None:
        aliases = [a for group in inventory.groups for a in group.aliases]
        self.first: dict[int, Alias] = {}
        for alias in aliases:
            if not is_lazy(alias.tensor):
                self.first.setdefault(id(alias.tensor), alias)
        self.named = {a.name: _parameter(a) for a in self.first.values()}
        self.frozen = {n: p for n, p in self.named.items() if _must_not_move(p, by_hand)}
        self.trainable = {
            n: p for n, p in self.named.items() if p.requires_grad and n not in self.frozen
        }
        self._slots = [
            (a.owner._parameters, a.name.rpartition(".")[2], a.tensor)
            for a in aliases
            if not is_lazy(a.tensor)
        ]
        self._parameters = list(self.named.values())
        self._flags = [p.requires_grad for p in self._parameters]
        self._claims = [len(claims_on(p)) for p in self.frozen.values()]

    def is_stale(self) -> bool:
        """Whether a flag changed, a parameter was replaced, or a freeze or thaw came or went."""
        if [p.requires_grad for p in self._parameters] != self._flags:
            return True
        # An undo that leaves the flag as it is, since the parameter was frozen by hand before.
        if [len(claims_on(p)) for p in self.frozen.values()] != self._claims:
            return True
        return any(held.get(key) is not parameter for held, key, parameter in self._slots)


def frozen_by_hand(inventory: Inventory) -> dict[int, nn.Parameter]:
    """The parameters that do not require grad although no freeze holds them."""
    return {
        id(p): p
        for group in inventory.groups
        for p in group.named.values()
        if not p.requires_grad and not is_decided(p) and not is_lazy(p)
    }


class Membership:
    """Which group of which optimizer holds which parameter; analysed anew when that changes."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers
        self._analysed: tuple[Roster, list[int]] | None = None
        self._faults: list[Fault] = []
        self._declared: list[tuple[str, nn.Parameter, Optimizer, int]] = []

    def faults(self, roster: Roster) -> list[Fault]:
        """Parameters in too few or too many groups, and frozen ones that have state.

        State that ``fl.sync(state="keep")`` keeps on purpose is well: the group names its owners.
        """
        if not self._optimizers:
            return []
        held = [id(p) for o in self._optimizers for g in o.param_groups for p in g["params"]]
        if self._analysed is None or self._analysed != (roster, held):
            self._analyse(roster)
            self._analysed = (roster, held)
        kept = {
            (id(o), index): frozenset(group.get("kept_names", ()))
            for o in self._optimizers
            for index, group in enumerate(o.param_groups)
        }
        stateful = [
            Fault(name, _stateful(optimizer, index, optimizer.state[parameter]))
            for name, parameter, optimizer, index in self._declared
            if any(v is not None for v in optimizer.state.get(parameter, {}).values())
            and name not in kept[id(optimizer), index]
        ]
        return self._faults + stateful

    def _analyse(self, roster: Roster) -> None:
        places: dict[int, list[tuple[Optimizer, int]]] = {}
        for optimizer in self._optimizers:
            for index, group in enumerate(optimizer.param_groups):
                for parameter in group["params"]:
                    places.setdefault(id(parameter), []).append((optimizer, index))
        known = {id(p) for p in roster.named.values()}
        strangers = sum(key not in known for key in places)
        self._faults = [
            Fault(name, self._missing(strangers) if not found else _several(found))
            for name, p in roster.trainable.items()
            if len(found := places.get(id(p), [])) != 1
        ]
        self._declared = [
            (name, p, optimizer, index)
            for name, p in roster.frozen.items()
            for optimizer, index in places.get(id(p), [])
        ]

    def _missing(self, strangers: int) -> str:
        given = ", ".join(type(optimizer).__name__ for optimizer in self._optimizers)
        text = (
            f"it is trainable, but in no group of {given}, so nothing trains it: call"
            " fl.sync(model, optimizer), or give the guard the optimizer that holds it"
        )
        if strangers:
            text += (
                f". The groups hold {strangers} tensors that are not the model's: were its"
                " parameters replaced (load_state_dict(assign=True)) after the optimizer was built?"
            )
        return text


def is_decided(parameter: nn.Parameter) -> bool:
    """Whether a freeze or a thaw that was not undone is about the parameter."""
    return any(claim.trainable is not None for claim in claims_on(parameter))


def _must_not_move(parameter: nn.Parameter, by_hand: Mapping[int, nn.Parameter]) -> bool:
    if is_decided(parameter):
        return is_held_frozen(parameter)
    return id(parameter) in by_hand


def _parameter(alias: Alias) -> nn.Parameter:
    assert isinstance(alias.tensor, nn.Parameter)
    return alias.tensor


def _several(places: Iterable[tuple[Optimizer, int]]) -> str:
    listed = " and ".join(f"group {index} of {type(o).__name__}" for o, index in places)
    return f"it is in {listed}: every step moves it more than once; leave it in one"


def _stateful(optimizer: Optimizer, index: int, state: Mapping[str, Any]) -> str:
    return (
        f"it is frozen, but group {index} of {type(optimizer).__name__} keeps state for it"
        f" ({', '.join(state)}), which costs memory and comes back old on a thaw: call"
        " fl.sync(model, optimizer) after a freeze, with state='keep' if that is what you want"
    )
