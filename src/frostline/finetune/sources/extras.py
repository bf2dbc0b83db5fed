"""Packages that only some jobs need: imported when they are, with one clear line if they lack."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from frostline.errors import ConfigError


def require(module: str, *, reason: str, install: str = "'frostline[hf]'") -> Any:
    """Import a module of an optional package.

    Args:
        module: its dotted name.
        reason: what needs it, the beginning of the message.
        install: what ``pip install`` is to be given.

    Raises:
        ConfigError: it is not installed, or does not import.

    >>> require("json", reason="this example").dumps([1])
    '[1]'
    >>> require("no_such_package", reason="a model of timm", install="timm")
    Traceback (most recent call last):
    frostline.errors.ConfigError: a model of timm needs no_such_package, which is not installed: \
pip install timm
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        state = "not installed" if missing else f"installed but does not import ({error})"
        raise ConfigError(
            f"{reason} needs {package}, which is {state}: pip install {install}"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let Hugging Face's libraries work without bars, reports and warnings of their own.

    What matters of it is in the notes of the sources; their errors come through.
    """
    transformers = require("transformers", reason="a Hugging Face model")
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(transformers|datasets|huggingface_hub)\b")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
