"""A delta: what was trained of a model, in one ``.safetensors`` file, and what the rest has to be.

The file's metadata holds two entries: ``frostline``, a JSON document on every tensor of the
model, and ``frostline_checksum``, its xxh3_128. The document has a fingerprint of each tensor,
those in the file too, so every bit of the file is covered.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from frostline.checkpoint.content import ContentReader
from frostline.checkpoint.stored import StoredTensor, read_metadata, read_safetensors
from frostline.errors import CheckpointError, PlanError
from frostline.freezing.plan import Plan

_VERSION = 1
_DOCUMENT = "frostline"
_CHECKSUM = "frostline_checksum"


@dataclass(frozen=True, kw_only=True)
class DeltaTensor:
    """One tensor of the model that a delta belongs to.

    Attributes:
        names: its name, and further ones where it is tied; canonical, in the model's order.
        kind: ``parameter`` or ``buffer``.
        shape: its sizes.
        dtype: as torch names it, such as ``float32``.
        fingerprint: of its content when the delta was saved.
        stored: whether the file holds its content; otherwise it is the base's.
        frozen: whether it was to stay as it was: by the plan, or as the model stood.
    """

    names: tuple[str, ...]
    kind: Literal["parameter", "buffer"]
    shape: tuple[int, ...]
    dtype: str
    fingerprint: str
    stored: bool
    frozen: bool

    @property
    def name(self) -> str:
        """The first of its names; under it the file holds it."""
        return self.names[0]


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What a delta checkpoint says of itself.

    Attributes:
        path: the file.
        plan: what was to be frozen and trained.
        tensors: every tensor of the model, in its order.
        nbytes: bytes of the tensors that the file holds.
    """

    path: Path
    plan: Plan
    tensors: tuple[DeltaTensor, ...]
    nbytes: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors that the file holds."""
        return tuple(tensor.name for tensor in self.tensors if tensor.stored)

    @property
    def base(self) -> str:
        """One fingerprint of all that the file does not hold, which its base has to have."""
        return fold((t.name, t.fingerprint) for t in self.tensors if not t.stored)


def fold(fingerprints: Iterable[tuple[str, str]]) -> str:
    """One fingerprint of several (name, fingerprint), whatever their order.

    >>> fold([("a", "01"), ("b", "02")]) == fold([("b", "02"), ("a", "01")])
    True
    """
    lines = sorted(f"{name}\0{digest}\n" for name, digest in fingerprints)
    return xxhash.xxh3_128_hexdigest("".join(lines).encode())


def delta_metadata(plan: str, tensors: Iterable[DeltaTensor]) -> dict[str, str]:
    """The metadata of a delta's file."""
    listed = list(tensors)
    document = json.dumps(
        {
            "version": _VERSION,
            "base": fold((t.name, t.fingerprint) for t in listed if not t.stored),
            "plan": plan,
            "tensors": [asdict(tensor) for tensor in listed],
        },
        separators=(",", ":"),
    )
    return {_DOCUMENT: document, _CHECKSUM: _checksum(document)}


def is_delta(path: Path) -> bool:
    """Whether ``path`` is a ``.safetensors`` file that says it is a delta.

    Raises CheckpointError if it is damaged.

    >>> is_delta(Path("net.pt"))
    False
    """
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return False
    return any(key.startswith(_DOCUMENT) for key in read_metadata(path))


def read_delta(path: str | Path) -> Delta:
    """Read what a delta says of itself; its tensors' content is left unread.

    Raises:
        CheckpointError: (a ValueError) there is no such file, it is cut or altered, no delta, or
            of a version that this Frostline does not know.

    >>> from tempfile import TemporaryDirectory
    >>> import frostline as fl
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> frozen = fl.freeze(model, "0")
    >>> with TemporaryDirectory() as folder:
    ...     _ = fl.save_trained(model, Path(folder, "tuned.safetensors"))
    ...     read_delta(Path(folder, "tuned.safetensors")).names
    ('1.weight', '1.bias')
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    metadata = read_metadata(path)
    document = metadata.get(_DOCUMENT)
    if document is None or _CHECKSUM not in metadata:
        raise CheckpointError(
            f"{path} is no delta: fl.save_trained writes one; of any other checkpoint use"
            " model.load_state_dict"
        )
    content = _parsed(path, document)
    _refuse_other_version(path, content)
    if metadata.keys() != {_DOCUMENT, _CHECKSUM} or metadata[_CHECKSUM] != _checksum(document):
        raise damaged(path, "its header")
    try:
        delta = Delta(
            path=path,
            plan=Plan.parse(content["plan"], source=f"the plan in {path}"),
            tensors=tuple(_tensor(entry) for entry in content["tensors"]),
            nbytes=sum(tensor.nbytes for tensor in read_safetensors(path)),
        )
    except (LookupError, TypeError, ValueError, PlanError) as error:
        raise damaged(path, f"its header ({error})") from error
    if delta.base != content.get("base"):
        raise damaged(path, "its header")
    stored_tensors(delta)  # raises where the file holds something else
    return delta


def stored_tensors(delta: Delta) -> dict[str, StoredTensor]:
    """Name → where its content lies, of each tensor in the delta's file.

    Raises CheckpointError if the file does not hold what its header says.
    """
    found = {tensor.name: tensor for tensor in read_safetensors(delta.path)}
    told = {t.name: (t.shape, t.dtype) for t in delta.tensors if t.stored}
    there = {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()}
    if there != told:
        name = next(n for n in (*told, *there) if told.get(n) != there.get(n))
        raise damaged(delta.path, name)
    return found


def verify_content(delta: Delta, reader: ContentReader) -> dict[str, StoredTensor]:
    """Read all of a delta once; what :func:`stored_tensors` gives, if every bit is right.

    Raises CheckpointError that names the first tensor which is not as it was saved.
    """
    stored = stored_tensors(delta)
    for tensor in delta.tensors:
        if tensor.stored and reader.fingerprint(stored[tensor.name]) != tensor.fingerprint:
            raise damaged(delta.path, tensor.name)
    return stored


def damaged(path: Path, what: str) -> CheckpointError:
    """The error for a delta of which ``what`` is not as it was saved."""
    return CheckpointError(
        f"{path} is damaged or was altered: {what} is not as it was saved. Fetch or save it again"
    )


def _parsed(path: Path, document: str) -> Mapping[str, Any]:
    try:
        content = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its header") from error
    if not isinstance(content, dict):
        raise damaged(path, "its header")
    return content


def _refuse_other_version(path: Path, content: Mapping[str, Any]) -> None:
    version = content.get("version")
    if version != _VERSION or isinstance(version, bool):
        raise CheckpointError(
            f"{path} is a delta of version {version!r}, and this Frostline reads version"
            f" {_VERSION}: install the Frostline that wrote it, or a newer one"
        )


def _tensor(entry: Mapping[str, Any]) -> DeltaTensor:
    names = tuple(entry["names"])
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names {names!r}")
    return DeltaTensor(**{**entry, "names": names, "shape": tuple(entry["shape"])})


def _checksum(document: str) -> str:
    return xxhash.xxh3_128_hexdigest(document.encode())
