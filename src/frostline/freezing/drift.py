"""A thaw that a DistributedDataParallel would not notice is refused: ranks would drift apart."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from frostline.distributed import has_peers, unreduced
from frostline.errors import TransitionError
from frostline.freezing.flags import can_train
from frostline.naming import TensorGroup


def refuse_drift(model: nn.Module, thawing: Iterable[TensorGroup]) -> None:
    """Raise TransitionError if no wrapper would average the gradients of what is about to thaw.

    It is found out without a word to the other ranks, so that one rank alone may call this. Where
    there are no other ranks, or no wrapper, or it was built while all of it trained, nothing is
    wrong.

    Args:
        model: the model, as it was given.
        thawing: groups of which frozen parameters are about to train.
    """
    if not has_peers():
        return
    named = {
        id(parameter): name
        for group in thawing
        for name, parameter in group.named.items()
        if not parameter.requires_grad and can_train(parameter)
    }
    if not named:
        return
    parameters = [p for p in model.parameters() if id(p) in named]
    missed = unreduced(model, parameters)
    if missed:
        more = f" (and {len(missed) - 1} more)" if len(missed) > 1 else ""
        raise TransitionError(
            f"{named[id(missed[0])]}{more} can't be thawed under this DistributedDataParallel,"
            " which was built while it was frozen and would not average its gradient: the ranks"
            " would drift apart without a word. Let fl.Freezer(model, optimizer, schedule=...) thaw"
            " it, which has the wrapper follow; or take the model out (model = ddp.module; del"
            " ddp), thaw, and wrap it anew; or wrap it while all trains, with"
            " find_unused_parameters=True, and freeze and thaw afterwards"
        )
