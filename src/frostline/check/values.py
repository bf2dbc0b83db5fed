"""FL1xx: frozen parameters that something may still write."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from frostline.check.context import Context
from frostline.check.finding import Hit, rule
from frostline.freezing.flags import is_held_frozen
from frostline.freezing.modes import pin_of


@rule(
    "FL101",
    "stale-gradient",
    fix="set its .grad to None; fl.freeze does, or zero_grad(set_to_none=True) before freezing",
)
def stale_gradient(context: Context) -> Iterator[Hit]:
    """A frozen parameter still has a gradient."""
    for name, parameter in context.frozen.items():
        if parameter.is_leaf and parameter.grad is not None:
            yield Hit(
                name,
                "is frozen but still has a gradient: an optimizer that holds it applies it, or"
                " decay and momentum with it, and clip_grad_norm_ counts it",
            )


@rule(
    "FL107",
    "renormalised-embedding",
    fix="set the module's max_norm to None while it is frozen",
)
def renormalised_embedding(context: Context) -> Iterator[Hit]:
    """A frozen embedding has max_norm, so that looking up a row rewrites it."""
    for part in context.parts:
        if isinstance(part.module, nn.Embedding | nn.EmbeddingBag) and part.frozen:
            limit = part.module.max_norm
            if limit is not None:
                yield Hit(
                    part.name,
                    f"is frozen, but max_norm={limit:g} rewrites the rows that forward looks up,"
                    " in eval mode and under no_grad too",
                )


@rule(
    "FL108",
    "thawed-by-hand",
    fix="thaw with fl.unfreeze, or set requires_grad back to False",
)
def thawed_by_hand(context: Context) -> Iterator[Hit]:
    """A parameter that fl.freeze holds frozen requires gradients again."""
    copies = {
        id(parameter)
        for part in context.parts
        if (pin := pin_of(part.module)) is not None and pin.is_copy and not pin.trains
        for parameter in part.module.parameters()
    }
    for name, parameter in context.trainable.items():
        if is_held_frozen(parameter) or id(parameter) in copies:
            yield Hit(
                name,
                "was frozen by fl.freeze and requires gradients again: something set the flag by"
                " hand, such as requires_grad_() on a module around it",
            )


RULES = (stale_gradient, renormalised_embedding, thawed_by_hand)
