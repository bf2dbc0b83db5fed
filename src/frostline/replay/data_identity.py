"""Whether a data set is the one of the last run: a name that follows from its content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import xxhash
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from frostline.replay.data_identity_state import Feed, Unidentified, feed_state, feed_text


def data_fingerprint(dataset: Any) -> str | None:
    """Name a data set by what its samples are made from; no sample is loaded.

    Known are: ``TensorDataset``; a list or tuple of tensors, arrays and plain values; ``Subset``
    and ``ConcatDataset`` of known ones; Hugging Face ``datasets``, by their own fingerprint; image
    folders, as torchvision's: an object whose ``samples`` or ``imgs`` lists files. Of these count
    path, size and time of change of every file, all attributes of the object (its transforms with
    theirs) and the source files of the classes and functions among them. Not looked at are files
    that such code opens besides, and modules that it imports.

    Args:
        dataset: any data set; it is only read.

    Returns:
        32 hexadecimal digits, the same in every process; None where the content can't be told
        without loading: any other class (a subclass of a known one too, as its ``__getitem__``
        may do anything), lambdas, objects that can't be pickled.

    >>> import torch
    >>> mine, same, other = (TensorDataset(torch.full((3,), value)) for value in (1.0, 1.0, 2.0))
    >>> data_fingerprint(mine) == data_fingerprint(same), data_fingerprint(mine) is None
    (True, False)
    >>> data_fingerprint(mine) == data_fingerprint(other)
    False
    """
    digest = xxhash.xxh3_128()
    try:
        _feed(dataset, digest.update)
    except (Unidentified, OSError, RecursionError):
        return None
    return str(digest.hexdigest())


def _feed(dataset: Any, feed: Feed) -> None:
    kind: type = type(dataset)
    if kind is TensorDataset:
        feed_text("tensors", feed)
        feed_state(dataset.tensors, feed)
    elif kind in (list, tuple) or isinstance(dataset, Tensor | numpy.ndarray):
        feed_text("values", feed)
        feed_state(dataset, feed)
    elif kind is Subset:
        feed_text("subset", feed)
        feed_state(dataset.indices, feed)
        _feed(dataset.dataset, feed)
    elif kind is ConcatDataset:
        feed_text(f"concat {len(dataset.datasets)}", feed)
        for part in dataset.datasets:
            _feed(part, feed)
    elif kind.__module__.partition(".")[0] == "datasets" and "_fingerprint" in vars(dataset):
        feed_text(f"{kind.__qualname__} {dataset._fingerprint}", feed)
    elif (files := _files(dataset)) is not None:
        feed_text("files", feed)
        feed_state(dataset, feed)
        for file in files:
            told = Path(file).stat()
            feed_text(f"{file} {told.st_size} {told.st_mtime_ns}", feed)
    else:
        raise Unidentified


def _files(dataset: Any) -> list[str] | None:
    """The files of an image folder: its samples are (path, class) or paths."""
    own = getattr(dataset, "__dict__", {})
    samples = own.get("samples", own.get("imgs"))
    if not isinstance(samples, Sequence) or not samples:
        return None
    files = [sample[0] if isinstance(sample, tuple | list) else sample for sample in samples]
    return [str(file) for file in files] if all(isinstance(f, str | Path) for f in files) else None
