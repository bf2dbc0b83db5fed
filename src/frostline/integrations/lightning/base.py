"""The Lightning that is in use: ``lightning.pytorch``, or ``pytorch_lightning``."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from frostline.errors import MissingExtraError

if TYPE_CHECKING:
    from lightning.pytorch import Callback

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callback_class() -> type[Callback]:
    """The base class of callbacks, of the package that is imported already, or can be."""
    loaded = [name for name in _PACKAGES if name in sys.modules]
    for name in (*loaded, *_PACKAGES):
        try:
            found: type[Callback] = import_module(name).Callback
        except ImportError:
            continue
        return found
    raise MissingExtraError(
        "frostline.integrations.lightning needs Lightning: pip install 'frostline[lightning]'"
    )


if not TYPE_CHECKING:
    Callback = _callback_class()

__all__ = ["Callback"]
