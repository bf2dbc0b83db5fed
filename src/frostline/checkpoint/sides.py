"""A checkpoint of any kind as tensors with content or with a fingerprint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from frostline.checkpoint.content import ContentReader
from frostline.checkpoint.delta import Delta, is_delta, read_delta, verify_content
from frostline.checkpoint.listing import Listing, read_listing
from frostline.checkpoint.stored import StoredTensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """One tensor of a checkpoint.

    Attributes:
        names: its names, in order; several if it is tied.
        shape: its sizes.
        dtype: as torch names it.
        nbytes: bytes to read for its content; 0 if there is only a fingerprint.
        stored: where its content lies; None if a delta leaves it to its base.
        fingerprint: of its content, where that is known without reading it.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    stored: StoredTensor | None
    fingerprint: str | None = None

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    def content(self, reader: ContentReader) -> str:
        """Its fingerprint, from the file if it must be."""
        if self.fingerprint is not None:
            return self.fingerprint
        assert self.stored is not None
        return reader.fingerprint(self.stored)


@dataclass(frozen=True, kw_only=True)
class Side:
    """A checkpoint that is compared with another.

    Attributes:
        path: the file or folder.
        tensors: what is in it, each tensor once.
        delta: what it says of itself if it is a delta.
    """

    path: Path
    tensors: tuple[Held, ...]
    delta: Delta | None

    @cached_property
    def by_name(self) -> dict[str, Held]:
        """Every name of every tensor."""
        return {name: held for held in self.tensors for name in held.names}

    @property
    def nbytes(self) -> int:
        """Bytes of content."""
        return sum(held.nbytes for held in self.tensors)

    def listed(self) -> Iterator[StoredTensor]:
        """The tensors under each of their names, as a listing has them."""
        for held in self.tensors:
            for name in held.names:
                yield StoredTensor(
                    name=name,
                    shape=held.shape,
                    dtype=held.dtype,
                    nbytes=held.nbytes,
                    same_as=None if name == held.name else held.name,
                )


def read_side(path: str | Path) -> Side:
    """List a checkpoint or a delta; a delta's content is read once, to be sure of it.

    Raises:
        CheckpointError: it can't be read, is damaged, or is no checkpoint.

    >>> from tempfile import TemporaryDirectory
    >>> import torch
    >>> with TemporaryDirectory() as folder:
    ...     torch.save({"w": torch.zeros(2)}, Path(folder, "net.pt"))
    ...     read_side(Path(folder, "net.pt")).tensors[0].names
    ('w',)
    """
    path = Path(path)
    if is_delta(path):
        return _delta_side(read_delta(path))
    return _listing_side(read_listing(path))


def _listing_side(listing: Listing) -> Side:
    names: dict[str, tuple[str, ...]] = {}
    for tensor in listing.tensors:
        first = tensor.same_as or tensor.name
        names[first] = (*names.get(first, ()), tensor.name)
    held = tuple(
        Held(
            names=(tensor.name, *(n for n in names[tensor.name] if n != tensor.name)),
            shape=tensor.shape,
            dtype=tensor.dtype,
            nbytes=tensor.nbytes,
            stored=tensor,
        )
        for tensor in listing.tensors
        if tensor.same_as is None
    )
    return Side(path=listing.path, tensors=held, delta=None)


def _delta_side(delta: Delta) -> Side:
    with ContentReader() as reader:
        stored = verify_content(delta, reader)
    held = tuple(
        Held(
            names=tensor.names,
            shape=tensor.shape,
            dtype=tensor.dtype,
            nbytes=stored[tensor.name].nbytes if tensor.stored else 0,
            stored=stored.get(tensor.name),
            fingerprint=tensor.fingerprint,
        )
        for tensor in delta.tensors
    )
    return Side(path=delta.path, tensors=held, delta=delta)
