"""Accelerate: its ``prepare`` for a replay, its ``save_state`` for a freeze or a schedule.

Everything else needs no helper: models, optimizers and loaders that Accelerate has prepared are
what :func:`frostline.freeze`, :func:`frostline.sync`, :func:`frostline.replay` and
``fl.Freezer`` take, too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load_model
from torch import nn

from frostline.errors import CheckpointError
from frostline.freezer import Freezer
from frostline.freezing import Frozen
from frostline.integrations.records import record_of, refuse_other_freeze
from frostline.replay import Replay

_SHARDED = ("FSDP", "DEEPSPEED")
"""Kinds of Accelerate's run whose parameters are spread over ranks."""

_kept: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""Accelerator → how many freezes and schedules its states hold."""


def prepare(accelerator: Any, *objects: Any) -> Any:
    """``accelerator.prepare``, which also prepares the loader inside a replay.

    Accelerate itself hands on what it does not know. The batches of a replay would stay on the
    CPU, go to every process in full, and accumulation would not see the epoch's end.

    Args:
        accelerator: an ``accelerate.Accelerator``.
        objects: models, optimizers, schedulers, loaders, and loops that :func:`frostline.replay`
            made, in any order.

    Returns:
        What ``accelerator.prepare`` returns: the prepared objects in the same order, or the one
        if it is one. A replay is the same object as before.

    Raises:
        ReplayError: (a RuntimeError) the samples of the prepared loader can't be told apart.

    >>> import frostline as fl, torch
    >>> from accelerate import Accelerator
    >>> from torch.utils.data import DataLoader
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    >>> frozen = fl.freeze(model, "0")
    >>> batches = fl.replay(model, DataLoader(torch.randn(8, 2), batch_size=4))
    >>> accelerator = Accelerator(cpu=True)
    >>> model, batches = prepare(accelerator, model, batches)
    >>> type(batches.loader).__name__
    'DataLoaderShard'
    """
    bare = [given.loader if isinstance(given, Replay) else given for given in objects]
    prepared = accelerator.prepare(*bare)
    made = list(prepared) if len(objects) > 1 else [prepared]
    for position, given in enumerate(objects):
        if isinstance(given, Replay):
            given.over(made[position])
            made[position] = given
    return tuple(made) if len(made) > 1 else made[0]


def keep_in_state(accelerator: Any, holder: Frozen | Freezer) -> None:
    """Have ``save_state`` save a freeze or a schedule too, and ``load_state`` bring it back.

    Flags are in no checkpoint, and Accelerate restores an optimizer by position, so its groups
    must hold what they held before it does. A freezer goes on in the phase that was saved; a
    freeze is compared with the saved one. Several are told apart by their order: call this in the
    same one where the state is loaded.

    Args:
        accelerator: an ``accelerate.Accelerator``.
        holder: what :func:`frostline.freeze` returned, or a ``fl.Freezer``, of a prepared model.

    Raises:
        CheckpointError: (a ValueError) Accelerate shards the model (FSDP, DeepSpeed): it loads
            weights and optimizers before any hook, and what is frozen is spread over ranks.
        PlanError, ScheduleError: (ValueErrors) from ``load_state``: another plan or schedule was
            saved, or what is frozen has other content.
        CheckpointError: (a ValueError) from ``load_state``: nothing of the kind was saved.

    >>> import frostline as fl, torch
    >>> from accelerate import Accelerator
    >>> accelerator = Accelerator(cpu=True)
    >>> model = accelerator.prepare(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))
    >>> keep_in_state(accelerator, fl.freeze(model, "0.weight"))
    >>> _ = accelerator.save_state("state")
    >>> accelerator.load_state("state")
    """
    kind = accelerator.distributed_type.name
    if kind in _SHARDED:
        raise CheckpointError(
            f"keep_in_state can't save with distributed_type {kind}: there Accelerate loads"
            " optimizers before what was frozen could be brought back. Leave it out: with a plan"
            " freeze as before, before accelerator.load_state; with a schedule save"
            " with torch.distributed.checkpoint instead (docs/fsdp.md says in which order to load)"
        )
    number = _kept.get(accelerator, 0)
    _kept[accelerator] = number + 1
    file = f"frostline{_ending(number)}.pt"
    accelerator.register_save_state_pre_hook(partial(_save, accelerator, holder, file))
    accelerator.register_load_state_pre_hook(partial(_load, holder, file))


def _save(
    accelerator: Any, holder: Frozen | Freezer, file: str, models: Any, weights: Any, folder: str
) -> None:
    if not accelerator.is_main_process:
        return
    if isinstance(holder, Frozen):
        state: dict[str, Any] = {"freeze": record_of(holder)}
    else:
        state = holder.state_dict()
        # The values are Accelerate's to save; who was in which group is what it lacks.
        state["optimizer"] = {**state["optimizer"], "state": {}}
    torch.save(state, Path(folder) / file)


def _load(holder: Frozen | Freezer, file: str, models: list[nn.Module], folder: str) -> None:
    path = Path(folder) / file
    if not path.exists():
        raise CheckpointError(
            f"{folder} was saved without the freeze (it has no {file}): call"
            " keep_in_state(accelerator, frozen) before accelerator.save_state, or load the"
            " weights alone"
        )
    state = torch.load(path, weights_only=True)
    if isinstance(holder, Freezer) == ("freeze" in state):
        raise CheckpointError(
            f"{folder} was saved with a schedule and is loaded with a plan, or the other way round:"
            " go on as in the run that was saved"
        )
    for index, model in enumerate(models):
        _load_weights(model, Path(folder), _ending(index))
    models.clear()  # by Accelerate's own rule: what a hook has loaded is not loaded again
    if isinstance(holder, Freezer):
        holder.load_state_dict(state)
    else:
        refuse_other_freeze(state["freeze"], record_of(holder))


def _ending(number: int) -> str:
    """How Accelerate tells files of one kind apart."""
    return f"_{number}" if number else ""


def _load_weights(model: nn.Module, folder: Path, ending: str) -> None:
    weights = folder / f"model{ending}.safetensors"
    if weights.exists():
        load_model(model, weights)
    else:
        model.load_state_dict(
            torch.load(folder / f"pytorch_model{ending}.bin", map_location="cpu", weights_only=True)
        )
