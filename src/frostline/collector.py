"""Python's cycle collector, kept out of the way."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the cycle collector from running, inside the block or the decorated function.

    For stretches that make many small objects which all live on: the collector walks them again
    and again and finds nothing. On a model of 100,000 tensors that was two thirds of the time.

    >>> with collector_paused():
    ...     gc.isenabled()
    False
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
