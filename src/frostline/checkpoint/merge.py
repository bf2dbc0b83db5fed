"""A delta put onto its base: a whole model again, written as it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from frostline.checkpoint.content import ContentReader
from frostline.checkpoint.delta import Delta, DeltaTensor, is_delta, read_delta, verify_content
from frostline.checkpoint.folders import (
    appearing_folder,
    copy_all_but_weights,
    safetensors_name,
    write_index,
)
from frostline.checkpoint.listing import Listing, read_listing
from frostline.checkpoint.stored import StoredTensor, read_metadata
from frostline.checkpoint.writing import Outgoing, write_safetensors
from frostline.errors import CheckpointError, OutputError
from frostline.files import replace_atomically
from frostline.proof.fingerprint import begin_fingerprint
from frostline.units import format_names

# What a base of this dtype may have been in training: the conversion loses nothing.
_WIDER = {"float16": ("float32", "float64"), "bfloat16": ("float32", "float64")}


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What a merge wrote.

    Attributes:
        path: the file or folder.
        files: the files of weights in it.
        replaced: names of the tensors that are the delta's.
        added: those of them that the base has not, or in another shape.
        nbytes: bytes of all tensors.
        config: the folder whose configuration and tokenizer files replace the base's; None if
            none does.
    """

    path: Path
    files: tuple[Path, ...]
    replaced: tuple[str, ...]
    added: tuple[str, ...]
    nbytes: int
    config: Path | None = None


def merge_delta(
    base: str | Path,
    delta: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Write the model that a delta and its base make.

    A file gives a file; a folder gives a folder with the same shards, the index, and the
    configuration and tokenizer files beside them, so ``from_pretrained`` loads it. It is
    ``.safetensors`` in each case. A few MiB are in memory at a time. The base is only read, and
    what is at ``out`` is whole or not there.

    Args:
        base: the checkpoint that the delta was trained on: a file, an index, or a folder.
        delta: what :func:`frostline.save_trained` wrote.
        out: the file or folder to make; it must not exist, or be an empty folder.
        config: a folder whose configuration and tokenizer files replace the base's: those of the
            tuned model, where it has another head. If left out it is the delta's own folder, if
            there is a ``config.json`` in that.
        progress: called with the bytes written so far, and all that are to be written.

    Raises:
        CheckpointError: (a ValueError) the delta is damaged or of another base (the first tensor
            that differs is named), or one of the two can't be read.
        OutputError: (an OSError) ``out`` exists or can't be written.
        In each case nothing is left at ``out``.

    >>> from tempfile import TemporaryDirectory
    >>> import frostline as fl
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> with TemporaryDirectory() as name:
    ...     folder = Path(name)
    ...     torch.save(model.state_dict(), folder / "base.pt")
    ...     frozen = fl.freeze(model, "0")
    ...     _ = fl.save_trained(model, folder / "delta.safetensors")
    ...     merge_delta(
    ...         folder / "base.pt", folder / "delta.safetensors", folder / "full.safetensors"
    ...     ).replaced
    ('1.weight', '1.bias')
    """
    base, out = Path(base), Path(out)
    if is_delta(base):
        raise CheckpointError(f"{base} is a delta: give the whole model that it was trained on")
    told = read_delta(delta)
    listing = read_listing(base)
    is_folder = base.is_dir() or base.name.endswith(".index.json")
    _refuse_target(base, out, is_folder=is_folder)
    config = _beside(told.path) if config is None else Path(config)
    if config is not None and not config.is_dir():
        raise CheckpointError(f"there is no folder {config} to take the configuration from")
    with ContentReader() as reader:
        merge = _Merge(listing, told, verify_content(told, reader), reader, progress)
        if not is_folder:
            replace_atomically(out, lambda file: merge.write(listing.files[0], file, last=True))
            return merge.result(out, (out,))
        with appearing_folder(out) as folder:
            for source in (base if base.is_dir() else base.parent, config):
                if source is not None:
                    copy_all_but_weights(source, folder)
            for file in listing.files:
                last = file == listing.files[-1]
                merge.write(file, folder / safetensors_name(file), last=last)
            if len(listing.files) > 1:
                write_index(folder, merge.weight_map, merge.nbytes)
        names = (safetensors_name(file) for file in listing.files)
        merged = merge.result(out, tuple(out / name for name in names))
        return replace(merged, config=config)


class _Merge:
    """Which content goes where, and the checks on the way."""

    def __init__(
        self,
        listing: Listing,
        delta: Delta,
        trained: dict[str, StoredTensor],
        reader: ContentReader,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._listing, self._delta, self._trained = listing, delta, trained
        self._reader, self._progress = reader, progress
        self._entries = {name: entry for entry in delta.tensors for name in entry.names}
        self._refuse_strangers()
        there = {tensor.name: tensor for tensor in listing.tensors}
        self._new = [
            entry
            for entry in delta.tensors
            if entry.stored and not any(name in there for name in entry.names)
        ]
        self._reshaped = [
            entry.name
            for entry in delta.tensors
            if entry.stored
            and any(there[name].shape != entry.shape for name in entry.names if name in there)
        ]
        self._written = 0
        sizes = {t.source: t.nbytes for t in listing.tensors}
        self._total = sum(sizes.values()) + sum(trained[e.name].nbytes for e in self._new)
        self.weight_map: dict[str, str] = {}

    def _refuse_strangers(self) -> None:
        """What the delta leaves to its base has to be there, in a shape that fits."""
        there = {tensor.name: tensor for tensor in self._listing.tensors}
        missing = []
        for entry in self._delta.tensors:
            if entry.stored:
                continue
            found = [there[name] for name in entry.names if name in there]
            if not found:
                missing.append(entry.name)
            for tensor in found:
                fits = entry.dtype in (tensor.dtype, *_WIDER.get(tensor.dtype, ()))
                if tensor.shape != entry.shape or not fits:
                    raise CheckpointError(
                        f"{self._delta.path} is not of the base {self._listing.path}:"
                        f" {entry.name} was {entry.dtype} {list(entry.shape)} in training, and is"
                        f" {tensor.dtype} {list(tensor.shape)} here. Nothing was written"
                    )
        if missing:
            raise CheckpointError(
                f"{self._delta.path} is not of the base {self._listing.path}, which has no"
                f" {format_names(missing)}. What was made anew with the model (a pooler) has to be"
                " in the delta: fl.save_trained(…, include=…). If loading changed the names, save"
                " the loaded base first (model.save_pretrained). Nothing was written"
            )

    def write(self, source: Path, target: Path, *, last: bool) -> None:
        """One file of the base as it is merged; the last also takes what the base has not."""
        outgoing = []
        for tensor in self._listing.tensors:
            assert tensor.source is not None
            file, key = tensor.source
            tied_note = tensor.same_as is not None and file.suffix.lower() == ".safetensors"
            if file == source and not tied_note:
                outgoing.append(self._outgoing(tensor, key))
        if last:
            outgoing += [self._from_delta(entry, entry.name) for entry in self._new]
        is_safetensors = source.suffix.lower() == ".safetensors"
        metadata = read_metadata(source) if is_safetensors else {"format": "pt"}
        self.weight_map |= {tensor.name: safetensors_name(source) for tensor in outgoing}
        write_safetensors(target, outgoing, metadata)

    @property
    def nbytes(self) -> int:
        """Bytes written so far."""
        return self._written

    def result(self, out: Path, files: tuple[Path, ...]) -> Merged:
        """What is to be said once all is written."""
        return Merged(
            path=out,
            files=files,
            replaced=self._delta.names,
            added=(*(entry.name for entry in self._new), *self._reshaped),
            nbytes=self._written,
        )

    def _outgoing(self, tensor: StoredTensor, key: str) -> Outgoing:
        entry = self._entries.get(tensor.name)
        if entry is not None and entry.stored:
            return self._from_delta(entry, key)
        return Outgoing(
            name=key,
            dtype=tensor.dtype,
            shape=tensor.shape,
            nbytes=tensor.nbytes,
            pieces=lambda: self._checked(tensor, entry),
        )

    def _from_delta(self, entry: DeltaTensor, key: str) -> Outgoing:
        stored = self._trained[entry.name]
        return Outgoing(
            name=key,
            dtype=entry.dtype,
            shape=entry.shape,
            nbytes=stored.nbytes,
            pieces=lambda: self._counted(self._reader.pieces(stored)),
        )

    def _checked(self, tensor: StoredTensor, entry: DeltaTensor | None) -> Iterator[memoryview]:
        """The base's content; it is looked at as it passes, so that it is read only once."""
        pieces = self._counted(self._reader.pieces(tensor))
        if entry is None:  # the base's alone, such as an old head: it goes along
            yield from pieces
            return
        digest = begin_fingerprint(entry.dtype, entry.shape)
        for piece in pieces:
            digest.update(piece if tensor.dtype == entry.dtype else _widened(piece, tensor, entry))
            yield piece
        if digest.hexdigest() != entry.fingerprint:
            raise CheckpointError(
                f"{self._delta.path} is not of the base {self._listing.path}: {tensor.name}"
                " differs from the one it was trained on. Nothing was written"
            )

    def _counted(self, pieces: Iterator[memoryview]) -> Iterator[memoryview]:
        for piece in pieces:
            self._written += len(piece)
            if self._progress is not None:
                self._progress(self._written, self._total)
            yield piece


def _widened(piece: memoryview, tensor: StoredTensor, entry: DeltaTensor) -> memoryview:
    narrow = torch.frombuffer(piece, dtype=getattr(torch, tensor.dtype))
    return narrow.to(getattr(torch, entry.dtype)).view(torch.uint8).numpy().data


def _beside(delta: Path) -> Path | None:
    """The delta's folder, if it has a model's configuration."""
    return delta.parent if (delta.parent / "config.json").is_file() else None


def _refuse_target(base: Path, out: Path, *, is_folder: bool) -> None:
    if not is_folder and out.suffix.lower() != ".safetensors":
        raise OutputError(f"cannot write {out}: a merged file is named *.safetensors")
    if is_folder and base.resolve() in out.resolve().parents:
        raise OutputError(f"cannot write {out}: it lies in the base, which is only read")
    if out.exists() and not (is_folder and out.is_dir() and not any(out.iterdir())):
        raise OutputError(f"cannot write {out}: it exists. Choose another place, or remove it")
