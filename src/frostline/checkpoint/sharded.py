"""Models whose tensors lie in parts on several ranks: what all of them have to do alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from frostline.errors import CheckpointError, FrostlineError
from frostline.shards import Team

Value = TypeVar("Value")


def by_leader(team: Team | None, action: Callable[[], Value]) -> Value:
    """Do something on the team's first rank alone; its result, or its error, is that of all.

    >>> by_leader(None, lambda: "here")
    'here'
    """
    if team is None:
        return action()
    outcome: Value | Exception | None = None
    if team.leads:
        try:
            outcome = action()
        except (FrostlineError, OSError) as error:
            outcome = error
    outcome = team.said_by_leader(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome  # type: ignore[return-value]  # the first rank's, which is not None


def by_all(team: Team | None, action: Callable[[], Value]) -> Value:
    """Do something on each rank; where it fails on one, the same error is raised on all.

    >>> by_all(None, lambda: "here")
    'here'
    """
    if team is None:
        return action()
    failure: Exception | None = None
    try:
        value = action()
    except (FrostlineError, OSError) as error:
        failure = error
    if team.any(failure is not None):
        raise next(error for error in team.share(failure) if error is not None)
    return value


def refuse_flattened(model: nn.Module) -> None:
    """Raise CheckpointError if FSDP1 has the parameters in flat pieces.

    Inside of its ``summon_full_params`` too: what it gathers there it must be able to free, and
    memory that was looked at through NumPy can't be.
    """
    for module in model.modules():
        if type(module).__name__ != "FullyShardedDataParallel":
            continue
        wrapper: Any = module
        if wrapper._has_params and wrapper._handle.uses_sharded_strategy:
            raise CheckpointError(
                "FullyShardedDataParallel keeps this model's parameters in flat pieces, of which"
                " no delta can be made or filled. Shard with torch.distributed.fsdp.fully_shard"
                " instead; or take torch.distributed.checkpoint.state_dict.get_model_state_dict"
                " with full_state_dict=True, and load that into the model without its wrapper"
            )
