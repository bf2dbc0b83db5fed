"""The tensors of one checkpoint file, by format: safetensors headers, and torch's own files.

Nothing is unpickled but tensors and plain containers, so a file from a stranger can't run code.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frostline.errors import CheckpointError
from frostline.naming import memory_span, tensor_bytes

# Where training scripts put the weights beside other things: Lightning and timm, torch's
# tutorials, DeepSpeed. The first that leads to tensors is taken.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
# safetensors' dtypes whose torch names do not follow from letter and width.
_SPECIAL_DTYPES = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
_DTYPE_LETTERS = {"F": "float", "I": "int", "U": "uint", "C": "complex"}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a checkpoint.

    Attributes:
        name: its name in the model.
        shape: its sizes.
        dtype: as torch names it, such as ``float32``.
        nbytes: bytes of its elements.
        same_as: the earlier tensor that lies on the same memory, or None.
        source: the file that holds its content, and its name there; what is equal but for this
            is equal.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    same_as: str | None = None
    source: tuple[Path, str] | None = field(default=None, repr=False, compare=False)

    @property
    def elements(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @property
    def is_buffer(self) -> bool:
        """Whether it is taken for a buffer: an integer tensor, or BatchNorm's running statistics.

        A checkpoint does not say what is a parameter; these can't be trained in any case.
        """
        leaf = self.name.rpartition(".")[2]
        trainable_dtype = self.dtype.startswith(("float", "bfloat", "complex"))
        return leaf in ("running_mean", "running_var") or not trainable_dtype


def read_safetensors(file: Path) -> list[StoredTensor]:
    """List a ``.safetensors`` file by its header; ties as ``save_model`` notes them.

    Raises CheckpointError if the file is damaged or can't be read.
    """
    with _opened(file) as content:
        headers = {key: content.get_slice(key) for key in content.keys()}  # noqa: SIM118
        notes = content.metadata() or {}
    sources = {key: key for key in headers}
    # Of a tied tensor save_model keeps one name, and writes the others into the metadata.
    sources |= {
        alias: kept for alias, kept in notes.items() if kept in headers and alias not in headers
    }
    return [
        StoredTensor(
            name=name,
            shape=(shape := tuple(headers[source].get_shape())),
            dtype=_torch_name(code := headers[source].get_dtype()),
            nbytes=_bytes_of(shape, code),
            same_as=None if name == source else source,
            source=(file, source),
        )
        for name, source in sources.items()
    ]


def read_torch(file: Path) -> list[StoredTensor]:
    """List a file that ``torch.save`` wrote, its weights memory-mapped and not read.

    Raises CheckpointError if the file is damaged, holds no state dict, or holds objects that
    would have to be unpickled.
    """
    listed: list[StoredTensor] = []
    first_on: dict[tuple[int, int, int], str] = {}
    for key, tensor in map_torch(file).items():
        span = memory_span(tensor)
        owner = first_on.setdefault(span, key) if span else key
        listed.append(
            StoredTensor(
                name=key,
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                nbytes=tensor_bytes(tensor),
                same_as=None if owner == key else owner,
                source=(file, key),
            )
        )
    return listed


def map_torch(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` wrote, in its order; memory-mapped where it can be.

    Raises CheckpointError as :func:`read_torch` does.
    """
    content = _state_dict(_load(file), file)
    return {key: tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}


def read_metadata(file: Path) -> dict[str, str]:
    """What a ``.safetensors`` file says of itself; empty if it says nothing.

    Raises CheckpointError if the file is damaged or can't be read.
    """
    with _opened(file) as content:
        return dict(content.metadata() or {})


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="np") as content:
            yield content
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is damaged or no safetensors file ({error}): fetch or save it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file} could not be read: {error.strerror or error}") from error


def _load(file: Path) -> object:
    try:
        # Only the zip format, which is torch's own since 1.6, can be memory-mapped.
        mapped = zipfile.is_zipfile(file)
        with warnings.catch_warnings():
            # About odd files; what is wrong with one is said below, once.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise CheckpointError(f"{file} could not be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL (\S+)", str(error))
        if needed is None:
            raise _damaged(file) from error
        raise CheckpointError(
            f"{file} holds more than tensors: it would have to unpickle {needed[1]}, which can run"
            " code, so it is left alone. Save the weights alone:"
            " torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{file} is a TorchScript program, not a checkpoint. Save its weights:"
                " torch.save(torch.jit.load(path).state_dict(), 'weights.pt')"
            ) from error
        # On garbage torch fails in many ways (EOFError, KeyError, RuntimeError, ...).
        raise _damaged(file) from error


def _damaged(file: Path) -> CheckpointError:
    return CheckpointError(
        f"{file} is damaged or not written by torch.save: fetch or save it again"
    )


def _state_dict(content: object, file: Path) -> dict[str, object]:
    """The mapping that holds tensors, found below the keys that training scripts use."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{file} holds a {type(content).__name__}, not a state dict: expected a mapping from"
            " names to tensors"
        )
    for key in _STATE_KEYS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and inner:
            return _state_dict(inner, file)
    if not any(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{file} holds no state dict: no tensors at the top nor under"
            f" {', '.join(_STATE_KEYS)}; it has: {', '.join(map(str, content)) or 'nothing'}"
        )
    return {str(key): value for key, value in content.items()}


def safetensors_code(dtype: str) -> str:
    """What safetensors calls torch's dtype of this name.

    >>> safetensors_code("float32"), safetensors_code("int64"), safetensors_code("bfloat16")
    ('F32', 'I64', 'BF16')
    """
    for code, name in _SPECIAL_DTYPES.items():
        if name == dtype:
            return code
    for letter, word in _DTYPE_LETTERS.items():
        if dtype.startswith(word):
            return letter + dtype.removeprefix(word).upper()
    return dtype.upper()


def _torch_name(code: str) -> str:
    """The name that torch has for safetensors' dtype ``code``; an unknown one in small letters.

    >>> _torch_name("F32"), _torch_name("I64"), _torch_name("BF16"), _torch_name("F4")
    ('float32', 'int64', 'bfloat16', 'float4')
    """
    if code in _SPECIAL_DTYPES:
        return _SPECIAL_DTYPES[code]
    return _DTYPE_LETTERS.get(code[0], code[0].lower()) + code[1:].lower()


def _bytes_of(shape: tuple[int, ...], code: str) -> int:
    """Bytes of a stored tensor: the first number in its dtype's code is the width in bits."""
    width = re.search(r"\d+", code)
    bits = int(width[0]) if width else 8  # BOOL
    return (math.prod(shape) * bits + 7) // 8
