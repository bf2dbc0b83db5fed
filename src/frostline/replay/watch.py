"""What a pass depends on besides its inputs, looked at before every pass: cheap, so shallow."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

from torch import Tensor, nn

from frostline.freezing.modes import pin_of
from frostline.proof.surroundings import Surroundings
from frostline.replay.compiled import IN_PLACE
from frostline.replay.deep import deep_mark
from frostline.replay.hooks import foreign_hooks
from frostline.replay.slots import NOT_LOOKED_AT, OF_SHARDING, Slots
from frostline.replay.stand_in import StandIn
from frostline.replay.versions import marks_of
from frostline.shards import Place, sharded_parameters


class Setting(NamedTuple):
    """A plain value on which the way through a model's code may depend.

    Attributes:
        owner: ``id`` of the module that has it; 0 for a global variable or a closure's.
        name: of the attribute.
        value: plain, or for tensors and objects something that tells them apart.
    """

    owner: int
    name: str
    value: Any


class Mark(NamedTuple):
    """Tells tensors in plain attributes apart."""

    identity: int
    version: Hashable


class State(NamedTuple):
    """A model at one moment; equal states take the same way through the same code.

    Attributes:
        tensors: for each parameter which object it is, and whether it trains.
        modes: for each module which object it is, its class, ``training``, replaced ``forward``,
            what its call was compiled to, and hooks.
        settings: plain values in the attributes of modules and of their configurations, and in
            global variables that their code mentions.
    """

    tensors: tuple[Any, ...]
    modes: tuple[Any, ...]
    settings: tuple[Setting, ...]


def look(model: nn.Module) -> State:
    """The state of a model now.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    >>> before = look(model)
    >>> model[1].p = 0.2
    >>> after = look(model)
    >>> before.tensors == after.tensors, before.settings == after.settings
    (True, False)
    """
    tensors: list[Any] = []
    modes: list[Any] = []
    settings: list[Setting] = []
    seen: set[int] = set()
    shards = sharded_parameters(model)  # whether or not they are gathered just now
    waiting: list[nn.Module] = [model]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        held = module.__dict__
        pin = pin_of(module)
        # A pinned module runs in eval mode, whatever model.train() has said since.
        is_training = module.training and not (pin is not None and pin.wish.eval_mode)
        hooks = foreign_hooks(module)
        forward = StandIn.behind(held.get("forward"))
        compiled = StandIn.behind(held.get(IN_PLACE))
        modes.append(
            (id(module), type(module), is_training, forward, compiled, tuple(map(id, hooks)))
        )
        for key, parameter in held["_parameters"].items():
            if parameter is not None:
                parameter = shards.get(Place(id(module), key), parameter)
                tensors.append((id(parameter), parameter.requires_grad))
        owner = id(module)
        settings += [Setting(owner, key, id(value)) for key, value in held["_buffers"].items()]
        for key, value in held.items():
            if key in NOT_LOOKED_AT or key.startswith(OF_SHARDING):
                continue
            kind = type(value)
            if kind in _PLAIN:
                settings.append(Setting(owner, key, value))
            elif isinstance(value, Tensor):
                settings.append(Setting(owner, key, Mark(id(value), *marks_of([value]))))
            elif kind in _COLLECTIONS:
                settings.append(Setting(owner, key, deep_mark(value)))
            elif isinstance(value, nn.Module):
                continue
            else:
                settings.append(Setting(owner, key, ("object", id(value))))
                if id(value) in seen:
                    continue
                seen.add(id(value))
                settings.append(Setting(owner, f"{key} inside", deep_mark(value)))
        waiting.extend(child for child in held["_modules"].values() if child is not None)
    return State(tuple(tensors), tuple(modes), tuple(settings))


_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
_COLLECTIONS = frozenset({list, tuple, set, frozenset, dict})


class Watch:
    """Looks at one model again and again: mostly nothing has changed, and that is seen quickly.

    >>> from torch import nn
    >>> watch = Watch(nn.Linear(2, 2))
    >>> watch.look() is watch.look()
    True
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._ignored: set[tuple[int, str]] = set()
        self._slots = Slots(model, self._ignored)
        self._surroundings = Surroundings(model.modules())
        self._state = self._look()

    def look(self) -> State:
        """The state of the model now, with what its code mentions outside of it.

        The same object as before, if nothing has changed.
        """
        if not self._slots.are_as_before():
            if not self._slots.have_same_modules():
                self._surroundings = Surroundings(self._model.modules())
            self._slots = Slots(self._model, self._ignored)
            self._state = self._look()
        elif self._surroundings.plain_values() != self._outside:
            self._state = self._look()
        return self._state

    def has_attribute(self, name: str) -> bool:
        """Whether any module has an attribute of its own; quick."""
        return self._slots.has_attribute(name)

    def ignore(self, setting: Setting) -> None:
        """Look at this no more: it changes by itself, and nothing depends on it."""
        self._ignored.add((setting.owner, setting.name))
        self._slots = Slots(self._model, self._ignored)
        self._state = self._look()

    def _look(self) -> State:
        self._outside = self._surroundings.plain_values()
        state = look(self._model)
        settings = [s for s in state.settings if (s.owner, s.name) not in self._ignored]
        settings += [
            Setting(0, name, value)
            for name, value in self._outside
            if (0, name) not in self._ignored
        ]
        return state._replace(settings=tuple(settings))


def changed_settings(before: State, after: State) -> list[Setting]:
    """The settings of ``after`` that are new or have another value than before.

    >>> from torch import nn
    >>> layer = nn.Dropout(0.1)
    >>> before = look(layer)
    >>> layer.p = 0.3
    >>> [setting.name for setting in changed_settings(before, look(layer))]
    ['p']
    """
    known = {(setting.owner, setting.name): setting.value for setting in before.settings}
    missing = object()
    return [s for s in after.settings if known.get((s.owner, s.name), missing) != s.value]
