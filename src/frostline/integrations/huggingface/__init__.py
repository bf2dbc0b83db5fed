"""Frostline in Hugging Face's Trainer, and in the trainers that are built on it."""

from __future__ import annotations

from frostline.errors import MissingExtraError

try:
    import transformers as _transformers  # noqa: F401  # looked for here, to say what is missing
except ImportError as error:
    raise MissingExtraError(
        "frostline.integrations.huggingface needs transformers and accelerate, which are not"
        " installed: pip install 'frostline[hf]'"
    ) from error

from frostline.integrations.huggingface.callback import FrostlineCallback

__all__ = ["FrostlineCallback"]
