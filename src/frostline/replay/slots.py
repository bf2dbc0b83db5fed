"""All places in a model's modules where something may be put that matters, looked at quickly.

Before every pass that is thousands of places, so the loops over them run in C: ``map`` over
methods of ``dict`` and over operators.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from frostline.freezing.modes import pin_of
from frostline.replay.compiled import OF_THE_COMPILER
from frostline.replay.contents import Contents
from frostline.replay.stand_in import StandIn

OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {"forward", "_call_impl"} | OF_THE_COMPILER
NOT_LOOKED_AT = OF_EVERY_MODULE | {"_frostline_replays"}
OF_SHARDING = "__composable_api"
"""How the names begin under which ``fully_shard`` keeps its state on a module."""
_TABLES = ("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks")
_tables_of = operator.itemgetter(*_TABLES)
_trains = operator.attrgetter("requires_grad")
_GONE = object()


class Slots:
    """What is in all of a model's places now, to be compared later.

    Args:
        model: the whole model.
        ignored: ``id`` of a module and an attribute's name, for attributes that do not count.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    >>> slots = Slots(model, set())
    >>> slots.are_as_before()
    True
    >>> model[1].p = 0.2
    >>> slots.are_as_before()
    False
    """

    def __init__(self, model: nn.Module, ignored: set[tuple[int, str]]) -> None:
        self._modules = list(model.modules())
        self._held = list(map(vars, self._modules))
        self._places = list(self._all_places(ignored))
        self._owners = [held for held, _ in self._places]
        self._keys = [key for _, key in self._places]
        self._values = list(map(dict.get, self._owners, self._keys))
        self._contents = Contents(held[key] for held, key in self._attributes(ignored))
        self._classes = list(map(type, self._modules))
        self._sizes = self._count()
        self._forwards = self._own_forwards()
        self._parameters = list(model.parameters())
        self._trains = list(map(_trains, self._parameters))

    def are_as_before(self) -> bool:
        """Whether the same objects are everywhere, and those that can change have not."""
        now = map(dict.get, self._owners, self._keys, repeat(_GONE))
        return (
            all(map(operator.is_, now, self._values))
            and list(map(_trains, self._parameters)) == self._trains
            and self._count() == self._sizes
            and list(map(type, self._modules)) == self._classes
            and self._own_forwards() == self._forwards
            and self._contents.are_as_before()
        )

    def has_attribute(self, name: str) -> bool:
        """Whether any of the modules has an attribute of its own."""
        return any(map(operator.contains, self._held, repeat(name)))

    def have_same_modules(self) -> bool:
        """Whether the modules are the same objects."""
        return all(
            held.get(key) is value
            for (held, key), value in zip(self._places, self._values, strict=True)
            if isinstance(value, nn.Module)
        )

    def _all_places(self, ignored: set[tuple[int, str]]) -> Iterator[tuple[dict[Any, Any], Any]]:
        for module, held in zip(self._modules, self._held, strict=True):
            for table in _tables_of(held):
                yield from ((table, key) for key in table)
            pin = pin_of(module)
            if pin is not None:
                yield vars(pin), "wish"
            if "training" in held and (pin is None or not pin.wish.eval_mode):
                # A pinned module runs in eval mode, whatever model.train() has said since.
                yield held, "training"
        yield from self._attributes(ignored)

    def _attributes(self, ignored: set[tuple[int, str]]) -> Iterator[tuple[dict[Any, Any], Any]]:
        for module, held in zip(self._modules, self._held, strict=True):
            for key in held:
                if key in NOT_LOOKED_AT or key.startswith(OF_SHARDING):
                    continue
                if (id(module), key) not in ignored:
                    yield held, key

    def _count(self) -> list[int]:
        """Sizes of all the places; a stand-in for a module's forward does not count."""
        tables = chain.from_iterable(map(_tables_of, self._held))
        forwards = map(operator.contains, self._held, repeat("forward"))
        calls = map(operator.contains, self._held, repeat("_call_impl"))
        return [
            len(_global_forward_hooks) + len(_global_forward_pre_hooks),
            *map(operator.sub, map(operator.sub, map(len, self._held), forwards), calls),
            *map(len, tables),
        ]

    def _own_forwards(self) -> list[tuple[int, Any]]:
        """Forwards that are not the classes' own, by the modules' order."""
        put = enumerate(map(dict.get, self._held, repeat("forward")))
        behind = [(order, StandIn.behind(forward)) for order, forward in put if forward is not None]
        return [(order, forward) for order, forward in behind if forward is not None]
