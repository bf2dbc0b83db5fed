"""FL1xx: frozen modules that rewrite buffers, or draw random numbers, when they run."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from frostline.check.context import Context, Part
from frostline.check.finding import Hit, rule
from frostline.check.randomness import is_random
from frostline.freezing.modes import pin_of


@rule(
    "FL102",
    "moving-statistics",
    fix="freeze it with fl.freeze, which pins eval mode; .eval() alone lasts until model.train()",
)
def moving_statistics(context: Context) -> Iterator[Hit]:
    """A frozen normalisation layer runs in train mode and updates its statistics."""
    for part in context.parts:
        if part.frozen and part.trains and part.rewrites and has_statistics(part.module):
            yield Hit(
                part.name,
                f"{type(part.module).__name__} is frozen but in train mode: every forward rewrites"
                " running_mean and running_var, under no_grad too",
            )


@rule(
    "FL103",
    "unpinned-eval",
    severity="warning",
    fix="freeze it with fl.freeze, whose pin survives train(), deepcopy and pickle",
)
def unpinned_eval(context: Context) -> Iterator[Hit]:
    """Only its training flag keeps a frozen normalisation layer still, until model.train()."""
    guarded = _guarding_their_mode(context)
    for part in context.parts:
        still = part.frozen and not part.module.training and pin_of(part.module) is None
        if still and has_statistics(part.module) and not part.name.startswith(guarded):
            yield Hit(
                part.name,
                f"{type(part.module).__name__} is frozen and in eval mode for now: the next"
                " model.train() lets its statistics move again",
            )


@rule(
    "FL104",
    "active-dropout",
    severity="warning",
    fix="freeze its block with fl.freeze, which turns it off, or call .eval() on it",
)
def active_dropout(context: Context) -> Iterator[Hit]:
    """Dropout, drop path or the like is on inside a frozen part."""
    for part in context.parts:
        if part.frozen and part.trains and is_random(part.module):
            yield Hit(
                part.name,
                f"{type(part.module).__name__} is on in a frozen part: its features are noisy, and"
                " can't be cached or replayed",
            )


@rule(
    "FL105",
    "power-iteration",
    fix="freeze it with fl.freeze, which pins eval mode and so stops the iteration",
)
def power_iteration(context: Context) -> Iterator[Hit]:
    """spectral_norm on a frozen weight rewrites its vectors in train mode."""
    for part in power_iterating(context):
        yield Hit(
            part.name,
            "spectral_norm of a frozen weight is in train mode: each read of the weight rewrites"
            " its vectors u and v, and so the weight that forward uses",
        )


@rule(
    "FL106",
    "active-observer",
    fix="disable it: module.apply(torch.ao.quantization.disable_observer)",
)
def active_observer(context: Context) -> Iterator[Hit]:
    """A quantisation observer in a frozen part rewrites its buffers."""
    for part in observing(context):
        yield Hit(
            part.name,
            f"{type(part.module).__name__} observes in a frozen part: every forward rewrites its"
            " range or scale, in eval mode too",
        )


@rule(
    "FL109",
    "eval-norm-trains",
    severity="warning",
    fix="freeze its weight and bias as well, or leave the layer in train mode",
)
def eval_norm_trains(context: Context) -> Iterator[Hit]:
    """A BatchNorm in eval mode, as if frozen, has weight and bias that train."""
    if not context.model.training:
        return
    for part in context.parts:
        own = [p for p in part.module._parameters.values() if p is not None]
        by_hand = not part.module.training and pin_of(part.module) is None
        if by_hand and has_statistics(part.module) and own and all(p.requires_grad for p in own):
            yield Hit(
                part.name,
                f"{type(part.module).__name__} is in eval mode in a model that trains, but its"
                " weight and bias still train: eval() stops only the statistics",
            )


def has_statistics(module: nn.Module) -> bool:
    """Whether a module updates running statistics in train mode, as BatchNorm does.

    >>> has_statistics(nn.BatchNorm1d(2)), has_statistics(nn.InstanceNorm1d(2))
    (True, False)
    """
    return (
        module._buffers.get("running_mean") is not None
        and bool(getattr(module, "track_running_stats", True))
        and "frozen" not in type(module).__name__.lower()  # FrozenBatchNorm2d never updates
    )


def power_iterating(context: Context) -> list[Part]:
    """The frozen modules that spectral_norm makes iterate: the layer, or its parametrization."""
    return [
        part
        for part in context.parts
        if part.frozen and part.trains and part.rewrites and _is_spectral(part.module)
    ]


def observing(context: Context) -> list[Part]:
    """The frozen quantisation observers that are on; a FakeQuantize stands for its own."""
    fakes = [part for part in context.parts if _is_a(part.module, "FakeQuantize")]
    inside = {id(m) for part in fakes for m in part.module.modules() if m is not part.module}
    return [
        part
        for part in context.parts
        if part.frozen
        and part.rewrites
        and id(part.module) not in inside
        and (_is_a(part.module, "FakeQuantize") or _is_a(part.module, "Observer"))
        and _observes(part.module)
    ]


def _observes(module: nn.Module) -> bool:
    switch = module._buffers.get("observer_enabled")
    return bool(module._buffers) and (switch is None or bool(switch.any()))


def _is_spectral(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()
    return _is_a(module, "_SpectralNorm") or any(type(h).__name__ == "SpectralNorm" for h in hooks)


def _is_a(module: nn.Module, word: str) -> bool:
    # By name: torch has moved its quantisation classes between packages, and torchao has its own.
    return any(word in base.__name__ for base in type(module).__mro__)


def _guarding_their_mode(context: Context) -> tuple[str, ...]:
    """Name prefixes below modules with a ``train`` of their own, which may keep eval mode."""
    own = [part for part in context.parts if type(part.module).train is not nn.Module.train]
    return tuple(f"{part.name}." if part.name else "" for part in own)


RULES = (
    moving_statistics,
    unpinned_eval,
    active_dropout,
    power_iteration,
    active_observer,
    eval_norm_trains,
)
