"""Writing ``.safetensors`` files a piece at a time: the header first, then each tensor's bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from frostline.checkpoint.stored import read_metadata, safetensors_code
from frostline.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """One tensor to be written.

    Attributes:
        name: its name in the file.
        dtype: as torch names it, such as ``float32``.
        shape: its sizes.
        nbytes: bytes of its elements.
        pieces: gives these bytes in logical order.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    nbytes: int
    pieces: Callable[[], Iterable[memoryview]]


def write_safetensors(
    path: Path, tensors: Sequence[Outgoing], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to ``path`` as they come, and see to it that they are on the disk.

    Args:
        path: the file; use with :func:`frostline.files.replace_atomically`.
        tensors: what it is to hold; it lies there by falling size of an element, so that all are
            aligned, and by name.
        metadata: what the file is to say of itself.

    Raises:
        CheckpointError: safetensors has no such dtype.
        OSError: the disk is full, no permission, and the like.

    >>> from tempfile import TemporaryDirectory
    >>> from safetensors.numpy import load_file
    >>> ones = Outgoing(name="w", dtype="uint8", shape=[2], nbytes=2, pieces=lambda: [b"ab"])
    >>> with TemporaryDirectory() as folder:
    ...     write_safetensors(Path(folder, "a.safetensors"), [ones])
    ...     load_file(Path(folder, "a.safetensors"))["w"].tolist()
    [97, 98]
    """
    ordered = sorted(tensors, key=lambda tensor: (-_item_bytes(tensor), tensor.name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": safetensors_code(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            written = sum(file.write(piece) for piece in tensor.pieces())
            assert written == tensor.nbytes, f"{tensor.name}: {written} of {tensor.nbytes} bytes"
        file.flush()
        os.fsync(file.fileno())
    try:
        read_metadata(path)
    except CheckpointError as error:
        dtypes = ", ".join(sorted({tensor.dtype for tensor in tensors}))
        raise CheckpointError(
            f"safetensors can't hold these tensors (dtypes {dtypes}): {error}"
        ) from error


def _item_bytes(tensor: Outgoing) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return tensor.nbytes // count if count else 0
