"""Parts that ``torch.compile`` has compiled: each is called as one, and nothing inside is caught.

``module.compile()`` puts what it compiled on the module itself; ``torch.compile(module)`` gives a
wrapper that has it as its ``forward``. Something in place of a module's forward *inside* would be
compiled along, and be a reason to compile anew whenever it comes or goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from frostline.naming import walk_modules

IN_PLACE = "_compiled_call_impl"
"""Where ``module.compile()`` puts what runs in place of the module's call."""

OF_THE_COMPILER = frozenset(
    {
        IN_PLACE,
        "_forward",
        "_super_module_initialized",
        "_torchdynamo_orig_callable",
        "_torchdynamo_wrapper_id",
        "dynamo_ctx",
        "get_compiler_config",
    }
)
"""Attributes of compiled modules that only the compiler reads, and writes as it likes."""


def is_compiled(module: nn.Module) -> bool:
    """Whether a module's call has been compiled, in place or by a wrapper.

    >>> layer = nn.Linear(2, 2)
    >>> is_compiled(layer), is_compiled(torch.compile(layer, backend="eager"))
    (False, True)
    """
    return "_orig_mod" in module._modules or vars(module).get(IN_PLACE) is not None


def slot_of(module: nn.Module) -> str:
    """The attribute that is called when a module is called, and that can be replaced.

    >>> slot_of(nn.Linear(2, 2))
    'forward'
    """
    return "forward" if vars(module).get(IN_PLACE) is None else IN_PLACE


def run_as_one(module: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of which nothing is seen but the call of this one: it, or all of a compiled one.

    >>> model = nn.Sequential(nn.ReLU(), nn.ReLU())
    >>> len(run_as_one(model)), len(run_as_one(torch.compile(model, backend="eager")))
    (1, 4)
    """
    return tuple(module.modules()) if is_compiled(module) else (module,)


def called_modules(model: nn.Module) -> dict[str, nn.Module]:
    """First name → module, for modules whose calls can be caught.

    Lists of modules have no forward; what lies inside of something compiled is not called one by
    one, also where it is shared and is called elsewhere as well.

    >>> block = nn.Sequential(nn.ReLU())
    >>> list(called_modules(nn.Sequential(block, torch.compile(block, backend="eager"))))
    ['', '1']
    """
    named = list(walk_modules(model))
    compiled = [module for _, module in named if is_compiled(module)]
    inside = {id(inner) for outer in compiled for inner in outer.modules() if inner is not outer}
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in named:
        has_forward = type(module).forward is not nn.Module.forward or is_compiled(module)
        if has_forward and id(module) not in inside:
            found.setdefault(id(module), (name, module))
    return dict(found.values())


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """While this is open, what is compiled in a model runs as it was written, operation by one.

    Nothing is compiled anew because of it, then or later.

    >>> with uncompiled(nn.Linear(2, 2)):
    ...     pass
    """
    if not any(map(is_compiled, model.modules())):
        yield  # the compiler takes a second to import
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def why_not_inside(model: nn.Module) -> str | None:
    """Why nothing can be replayed of a model that is compiled around what is frozen.

    >>> why_not_inside(nn.Linear(2, 2)) is None
    True
    >>> print(why_not_inside(torch.compile(nn.Linear(2, 2), backend="eager")))
    the model is compiled, so its modules are no longer called one by one. Compile only what ...
    """
    if is_compiled(model):
        return f"the model {_NOT_ONE_BY_ONE}"
    held = {name: module for name, module in walk_modules(model) if is_compiled(module)}
    inside = {id(p) for module in held.values() for p in module.parameters()}
    if any(not p.requires_grad for p in model.parameters() if id(p) not in inside):
        return None
    for name, module in held.items():
        if len({p.requires_grad for p in module.parameters()}) == 2:  # frozen beside trained
            return f"{name} {_NOT_ONE_BY_ONE}"
    return None


_NOT_ONE_BY_ONE = (
    "is compiled, so its modules are no longer called one by one. Compile only what trains"
    " (model.head.compile()), and give fl.replay and the loop the model as it was before"
    " torch.compile"
)
