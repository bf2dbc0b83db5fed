"""Loaders that wrap a ``DataLoader``: Accelerate's and Fabric's prepared ones."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from torch.utils.data import DataLoader

_HOLDERS = ("base_dataloader", "_dataloader")
"""Under which name Accelerate's wrapper holds its loader, and Fabric's."""


class Wrapping:
    """A loader, and the ``DataLoader`` that it reads, which may be itself.

    Args:
        loader: a ``DataLoader``, or a wrapper of one that moves its batches to a device, sets the
            epoch, counts.

    Attributes:
        inner: the ``DataLoader``, or whatever else was given.

    >>> class Counting:
    ...     def __init__(self, loader):
    ...         self._dataloader, self.epochs = loader, 0
    ...     def __iter__(self):
    ...         self.epochs += 1
    ...         yield from self._dataloader
    >>> counting = Counting(DataLoader([1, 2], batch_size=2))
    >>> wrapping = Wrapping(counting)
    >>> list(wrapping.iterate(["another"])), counting.epochs, wrapping.is_wrapped
    (['another'], 1, True)
    """

    def __init__(self, loader: Any) -> None:
        self._outer = loader
        self._holder: tuple[Any, str] | None = None
        # By type: Accelerate's wrapper answers isinstance as if it were a DataLoader.
        while not issubclass(type(loader), DataLoader):
            held = getattr(loader, "__dict__", {})
            key = next((name for name in _HOLDERS if name in held), None)
            if key is None:
                break
            self._holder = loader, key
            loader = held[key]
        self.inner: Any = loader

    @property
    def is_wrapped(self) -> bool:
        """Whether the loader is not the ``DataLoader`` itself."""
        return self._holder is not None

    def iterate(self, instead: Any) -> Iterator[Any]:
        """An epoch of the loader, read from ``instead`` in place of the ``DataLoader``."""
        return iter(instead) if self._holder is None else self._through(instead)

    def _through(self, instead: Any) -> Generator[Any, None, None]:
        """The wrapper itself is iterated: it is known to its framework, and counts its epochs."""
        assert self._holder is not None
        holder, key = self._holder
        held = vars(holder)
        original = held[key]
        held[key] = instead
        try:
            batches = iter(self._outer)
            first = next(batches, _END)
        finally:  # it has begun to read; what else asks for its loader gets the true one
            held[key] = original
        if first is not _END:
            yield first
            yield from batches


_END = object()
