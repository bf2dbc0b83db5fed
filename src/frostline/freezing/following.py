"""What was said of a parameter holds for its shards: ``fully_shard`` hangs others in its place."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from frostline.freezing.flags import claims_on
from frostline.freezing.modes import pin_of
from frostline.naming import Alias, walk_modules
from frostline.shards import Place, is_dtensor, may_exist, sharded_parameters


def shards_of(model: nn.Module, aliases: Iterable[Alias]) -> dict[int, nn.Parameter]:
    """Identity of a whole parameter → the sharded one that hangs in its place by now.

    >>> shards_of(nn.Linear(1, 1), [])
    {}
    """
    moved = [alias for alias in aliases if _held(alias) is not alias.tensor]
    if not moved:
        return {}
    sharded = sharded_parameters(model)
    found: dict[int, nn.Parameter] = {}
    for alias in moved:
        now = sharded.get(Place(id(alias.owner), _key(alias)), _held(alias))
        if now is not None and is_dtensor(now) and not is_dtensor(alias.tensor):
            found[id(alias.tensor)] = now
    return found


def keep_orphaned_pins(model: nn.Module) -> None:
    """Let pins stand by themselves where no freeze stands behind them any more.

    Where nobody kept the handle of a freeze, its claims died with the parameters that were
    sharded since; the modules are to stay as they are, like those of a copied model.
    """
    if not may_exist():
        return
    sharded = sharded_parameters(model)
    for _, module in walk_modules(model):
        held = (sharded.get(Place(id(module), key), p) for key, p in module._parameters.items())
        own = [parameter for parameter in held if parameter is not None]
        if own and all(is_dtensor(p) and not claims_on(p) for p in own):
            pin = pin_of(module)
            if pin is not None:
                pin.is_copy = True


def _held(alias: Alias) -> nn.Parameter | None:
    return alias.owner._parameters.get(_key(alias))


def _key(alias: Alias) -> str:
    return alias.name.rpartition(".")[2]
