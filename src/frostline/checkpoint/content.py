"""The bytes of stored tensors, a piece at a time, so that no file is ever in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from frostline.checkpoint.stored import StoredTensor, map_torch
from frostline.errors import CheckpointError
from frostline.proof.fingerprint import as_bytes, begin_fingerprint, has_plain_content

PIECE_BYTES = 4 << 20
"""Bytes that are looked at together; every piece of a tensor but its last has this size."""

# What was read of a mapped file counts as this process's memory until the map is let go.
_MAPPED_BYTES = 128 << 20


class ContentReader:
    """Reads tensors of checkpoint files; a context manager that closes the files it opened.

    Of ``.safetensors`` a piece is in memory at a time. A ``.pt`` file is mapped and let go every
    128 MiB, so there it is about that, or its largest tensor.

    >>> from tempfile import TemporaryDirectory
    >>> from frostline.checkpoint.listing import read_listing
    >>> with TemporaryDirectory() as folder:
    ...     torch.save({"w": torch.tensor([1, 2], dtype=torch.uint8)}, Path(folder, "net.pt"))
    ...     (stored,) = read_listing(Path(folder, "net.pt")).tensors
    ...     with ContentReader() as reader:
    ...         [bytes(piece) for piece in reader.pieces(stored)] == [bytes([1, 2])]
    True
    """

    def __init__(self) -> None:
        self._open = ExitStack()
        self._files: dict[Path, _SafetensorsFile] = {}
        self._maps: dict[Path, _TorchFile] = {}
        self.bytes_read = 0

    def pieces(self, tensor: StoredTensor) -> Iterator[memoryview]:
        """A tensor's elements in logical order; each piece is gone when the next is asked for.

        Raises:
            CheckpointError: the file is not as it was listed, can't be read, or holds the tensor
                in a form that has no plain bytes (sparse, quantised).
        """
        assert tensor.source is not None
        file, key = tensor.source
        if file.suffix.lower() == ".safetensors":
            if file not in self._files:
                self._files[file] = _SafetensorsFile(file, self._open)
            found = self._files[file].pieces(key)
        else:
            if file not in self._maps:
                self._maps[file] = _TorchFile(file)
            found = self._maps[file].pieces(key)
        for piece in found:
            self.bytes_read += len(piece)
            yield piece

    def fingerprint(self, tensor: StoredTensor) -> str:
        """What :func:`frostline.fingerprint` gives for the tensor, without loading it."""
        digest = begin_fingerprint(tensor.dtype, tensor.shape)
        for piece in self.pieces(tensor):
            digest.update(piece)
        return str(digest.hexdigest())

    def tensor(self, tensor: StoredTensor) -> Tensor:
        """The whole tensor, in memory of its own."""
        content = torch.empty(tensor.nbytes, dtype=torch.uint8)
        place = 0
        for piece in self.pieces(tensor):
            content[place : place + len(piece)] = torch.frombuffer(piece, dtype=torch.uint8)
            place += len(piece)
        return content.view(getattr(torch, tensor.dtype)).view(tensor.shape)

    def __enter__(self) -> ContentReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()
        self._files.clear()
        self._maps.clear()


class _SafetensorsFile:
    def __init__(self, file: Path, stack: ExitStack) -> None:
        self._path = file
        try:
            self._file: FileIO = stack.enter_context(file.open("rb", buffering=0))
            length = int.from_bytes(self._file.read(8), "little")
            header = json.loads(self._file.read(length))
        except OSError as error:
            raise CheckpointError(f"{file} could not be read: {error.strerror or error}") from error
        except (ValueError, MemoryError, OverflowError) as error:
            raise self._other_now() from error
        self._start = 8 + length
        self._places = {
            key: entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"
        }
        self._buffer = bytearray(PIECE_BYTES)

    def pieces(self, key: str) -> Iterator[memoryview]:
        if key not in self._places:
            raise self._other_now()
        begin, end = self._places[key]
        whole = memoryview(self._buffer)
        while begin < end:
            piece = whole[: min(PIECE_BYTES, end - begin)]
            self._fill(piece, self._start + begin)
            yield piece
            begin += len(piece)

    def _fill(self, piece: memoryview, place: int) -> None:
        try:
            self._file.seek(place)
            filled = 0
            while filled < len(piece):
                count = self._file.readinto(piece[filled:])
                if not count:
                    raise self._other_now()
                filled += count
        except OSError as error:
            raise CheckpointError(
                f"{self._path} could not be read: {error.strerror or error}"
            ) from error

    def _other_now(self) -> CheckpointError:
        return CheckpointError(f"{self._path} was changed while it was read: try again")


class _TorchFile:
    def __init__(self, file: Path) -> None:
        self._path = file
        self._tensors: dict[str, Tensor] = {}
        self._read = 0

    def pieces(self, key: str) -> Iterator[memoryview]:
        if not self._tensors or self._read > _MAPPED_BYTES:
            self._tensors = {}  # the old map goes before the new one comes
            self._tensors, self._read = map_torch(self._path), 0
        tensor = self._tensors.get(key)
        if tensor is None:
            raise CheckpointError(f"{self._path} was changed while it was read: try again")
        if not has_plain_content(tensor):
            raise CheckpointError(
                f"{self._path}: {key} is {_form(tensor)}, which can't be compared or merged here"
            )
        flat = as_bytes(tensor).numpy().data
        self._read += len(flat)
        for begin in range(0, len(flat), PIECE_BYTES):
            yield flat[begin : begin + PIECE_BYTES]


def _form(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return "quantised"
    return "without content" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
