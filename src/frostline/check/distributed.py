"""FL6xx: wrappers that have seen other flags than those that are set now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frostline.check.context import Context
from frostline.check.finding import Hit, rule
from frostline.distributed import live_wrappers, reduced_parameters


@rule(
    "FL601",
    "thawed-after-wrap",
    fix="wrap anew after a thaw; or wrap while all trains, with find_unused_parameters=True",
)
def thawed_after_wrap(context: Context) -> Iterator[Hit]:
    """A parameter trains that DistributedDataParallel does not synchronise."""
    for wrapper in live_wrappers(context.model):
        reduced = reduced_parameters(wrapper)
        ignored = {id(p) for n, p in wrapper.module.named_parameters() if n in _ignored(wrapper)}
        for parameter in wrapper.module.parameters():
            name = context.names.get(id(parameter))
            known = id(parameter) in reduced or id(parameter) in ignored
            if name is not None and parameter.requires_grad and not known:
                yield Hit(
                    name,
                    "trains, but was frozen when DistributedDataParallel was built, which does not"
                    " average its gradient: ranks drift apart without a word",
                )


@rule(
    "FL602",
    "frozen-after-wrap",
    fix="wrap anew after a freeze; or wrap with find_unused_parameters=True",
)
def frozen_after_wrap(context: Context) -> Iterator[Hit]:
    """A parameter is frozen whose gradient DistributedDataParallel waits for."""
    for wrapper in live_wrappers(context.model):
        if not wrapper.find_unused_parameters:
            for key in reduced_parameters(wrapper):
                name = context.names.get(key)
                if name in context.frozen:
                    yield Hit(
                        str(name),
                        "is frozen, but DistributedDataParallel was built when it trained and waits"
                        " for its gradient: the second step raises 'Expected to have finished"
                        " reduction'",
                    )


@rule(
    "FL603",
    "recompile-limit",
    severity="warning",
    fix="raise torch._dynamo.config.recompile_limit above the number of phases, or use fewer",
)
def recompile_limit(context: Context) -> Iterator[Hit]:
    """A compiled module has been compiled as often as torch allows: the next change runs eager."""
    for part in context.parts:
        inner = compiled_module(part.module)
        if inner is None:
            continue
        count, limit = _compilations(inner)
        if count >= limit:
            shared = ", counted together with all that is torch's own" if _is_torchs(inner) else ""
            yield Hit(
                part.name or type(inner).__name__,
                f"has been compiled {count} times{shared}, which is torch's limit: with the next"
                " freeze or thaw it runs uncompiled, without an error",
            )


def compiled_module(module: nn.Module) -> nn.Module | None:
    """The module whose forward torch compiles when this one is called; None if it compiles none.

    >>> import torch
    >>> layer = nn.Linear(2, 2)
    >>> compiled_module(torch.compile(layer, backend="eager")) is layer
    True
    """
    wrapped = module._modules.get("_orig_mod")
    # After module.compile(); torch's own classes are never compiled that way.
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    return module if wrapped is None and in_place and not _is_torchs(module) else wrapped


def _ignored(wrapper: DistributedDataParallel) -> set[str]:
    return set(wrapper.parameters_to_ignore)


def _compilations(module: nn.Module) -> tuple[int, int]:
    """How often a module's forward has been compiled, and how often torch would do it."""
    # Imported here: dynamo takes a second to load, and a model that is compiled has loaded it.
    from torch._dynamo import config
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list
    from torch._dynamo.external_utils import wrap_inline

    # Dynamo enters no forward of torch's own. It compiles one wrapper around them all instead: what
    # one nn.Sequential has used up is gone for the next.
    forward: Any = wrap_inline(module.forward) if _is_torchs(module) else type(module).forward
    code = getattr(forward, "__code__", None)
    entries = _debug_get_cache_entry_list(code) if code is not None else []
    return len(entries), int(config.recompile_limit)


def _is_torchs(module: nn.Module) -> bool:
    """Whether a module's forward is written in torch itself, as nn.Sequential's is."""
    return type(module).forward.__module__.partition(".")[0] == "torch"


RULES = (thawed_after_wrap, frozen_after_wrap, recompile_limit)
