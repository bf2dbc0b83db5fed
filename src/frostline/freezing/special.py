"""Modules that would rewrite what is to be frozen: refused by name, with the mend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parameter import is_lazy

from frostline.errors import PlanError, SelectorError
from frostline.naming import Inventory, TensorGroup


def refuse_lazy(groups: Iterable[TensorGroup]) -> None:
    """Raise PlanError if a parameter has no shape yet: there is nothing to hold frozen."""
    for group in groups:
        if any(is_lazy(parameter) for parameter in group.named.values()):
            raise PlanError(
                f"{group.name} is not initialised yet (a lazy module): run one batch through the"
                " model, then freeze"
            )


def refuse_renormalised(groups: Iterable[TensorGroup]) -> None:
    """Raise PlanError if forward rewrites a parameter: ``nn.Embedding(max_norm=…)``.

    It scales the rows that it looks up, in place, in eval mode and under ``no_grad`` too.
    """
    for group in groups:
        for alias in group.aliases:
            owner = alias.owner
            if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.max_norm is not None:
                raise PlanError(
                    f"{alias.name} cannot be frozen: its {type(owner).__name__} has"
                    f" max_norm={owner.max_norm}, which rewrites the rows that forward looks up."
                    f" Set max_norm=None first (model.{alias.owner_name}.max_norm = None)"
                )


@contextmanager
def flattening_explained(inventory: Inventory) -> Iterator[None]:
    """Where a selector finds nothing, say so if it is FSDP1 that has made one tensor of many."""
    try:
        yield
    except SelectorError as error:
        if any(group.name.endswith("_flat_param") for group in inventory.groups):
            raise SelectorError(
                f"{error} FullyShardedDataParallel has made one flat parameter of all in each of"
                " its units, which can only be frozen as a whole: wrap with use_orig_params=True,"
                " or shard with torch.distributed.fsdp.fully_shard"
            ) from error
        raise


def refuse_observing(inventory: Inventory, live: Iterable[TensorGroup]) -> None:
    """Raise PlanError if quantisation in a part that will be frozen is still being calibrated.

    A ``FakeQuantize`` whose observer is on computes with what it saw in the batch at hand, in
    eval mode too, so putting its buffers back afterwards would not make its output rest.

    Args:
        inventory: the model's.
        live: the groups that will train.
    """
    observing = [placed.name for placed in inventory.placements if _observes(placed.module)]
    if not observing:
        return
    training = [f".{alias.name}" for group in live for alias in group.aliases]
    everything = [f".{alias.name}" for group in inventory.groups for alias in group.aliases]
    for name in observing:
        around = f".{name}"
        while around and not any(owned.startswith(f"{around}.") for owned in everything):
            around = around.rpartition(".")[0]
        if not any(trains.startswith(f"{around}.") for trains in training):
            raise PlanError(
                f"{name} is a FakeQuantize whose observer is on: it goes on adapting its scale to"
                " each batch, in a part that is to be frozen. Switch it off first:"
                f" torch.ao.quantization.disable_observer(model.{name})"
            )


def _observes(module: nn.Module) -> bool:
    if not any("FakeQuantize" in base.__name__ for base in type(module).__mro__):
        return False
    enabled = module._buffers.get("observer_enabled")
    return enabled is not None and not enabled.is_meta and bool(enabled.any())
