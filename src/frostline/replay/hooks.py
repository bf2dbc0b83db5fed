"""Hooks that somebody hung on a module: skipping the module would skip them."""

from __future__ import annotations

from typing import Any

from torch import nn

_HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks")
# Ours, and those that only collect what a caller of the model asked for, from modules that are
# then kept because their outputs are returned.
# Of a block that fully_shard has sharded whole calls are stood in for, with these hooks.
_HARMLESS = ("frostline.", "transformers.", "torch.distributed.fsdp.")


def foreign_hooks(module: nn.Module) -> list[Any]:
    """The forward hooks on a module that may have effects of their own.

    >>> from torch import nn
    >>> layer = nn.Linear(2, 2)
    >>> handle = layer.register_forward_hook(print)
    >>> foreign_hooks(layer)
    [<built-in function print>]
    """
    hooks = [hook for table in _HOOK_TABLES for hook in getattr(module, table).values()]
    return [hook for hook in hooks if not _home(hook).startswith(_HARMLESS)]


def _home(hook: object) -> str:
    return f"{getattr(hook, '__module__', None) or type(hook).__module__}."
