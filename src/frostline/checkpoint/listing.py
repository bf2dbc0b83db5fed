"""What a checkpoint holds: names, shapes and dtypes, without loading the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from frostline.checkpoint.stored import StoredTensor, read_safetensors, read_torch
from frostline.errors import CheckpointError, SelectorError
from frostline.freezing import Frozen, Plan, freeze
from frostline.naming import canonical_keys

_SUFFIXES = (".safetensors", ".index.json", ".pt", ".pth", ".bin", ".ckpt")
# In a folder, as Hugging Face writes it: the first that is there.
_FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The tensors of a checkpoint.

    Attributes:
        path: the file or folder that was asked for.
        files: the files that hold the tensors: several where the checkpoint is in shards.
        tensors: in the order of the model where the files keep it (``.pt``); otherwise by name,
            with ``layer.2`` before ``layer.10``. Names are canonical: without wrapper prefixes.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: tuple[StoredTensor, ...]


def is_checkpoint(source: str) -> bool:
    """Whether ``source`` is meant as a checkpoint: by its suffix, or because it is a folder.

    >>> is_checkpoint("tuned.safetensors"), is_checkpoint("model.py:build")
    (True, False)
    """
    return source.lower().endswith(_SUFFIXES) or (source != "" and Path(source).is_dir())


def read_listing(path: str | Path) -> Listing:
    """List the tensors of a checkpoint without reading their content.

    Of a ``.safetensors`` file only the header is read; a ``.pt`` file is memory-mapped, and no
    object in it is unpickled. A checkpoint in shards is listed whole.

    Args:
        path: a ``.safetensors``, ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file, an
            ``*.index.json``, or a folder as Hugging Face writes it.

    Raises:
        CheckpointError: the file is not there, is damaged, holds no state dict, or holds
            objects that would have to be unpickled.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     torch.save({"fc.weight": torch.zeros(2, 3)}, Path(folder, "net.pt"))
    ...     read_listing(Path(folder, "net.pt")).tensors
    (StoredTensor(name='fc.weight', shape=(2, 3), dtype='float32', nbytes=24, same_as=None),)
    """
    path = Path(path)
    files = _files(path)
    found: list[StoredTensor] = []
    for file in files:
        read = read_safetensors if file.suffix.lower() == ".safetensors" else read_torch
        found += read(file)
    if not found:
        raise CheckpointError(f"{path} holds no tensors")
    tensors = _canonical(found)
    # safetensors orders by dtype and name, and shards split the model anywhere.
    if len(files) > 1 or files[0].suffix.lower() == ".safetensors":
        tensors.sort(key=lambda tensor: _natural(tensor.name))
    return Listing(path=path, files=files, tensors=tuple(tensors))


def skeleton(listing: Listing, *, as_parameters: bool = False) -> nn.Module:
    """A model without content or behaviour whose tensors have the checkpoint's names.

    It lets selectors and plans work on a file. All is float32 on the meta device; classes are
    unknown, so ``type:`` selectors match nothing.

    Args:
        listing: the checkpoint's tensors.
        as_parameters: make buffers parameters too, so that selectors find them.

    >>> fc = StoredTensor(name="fc.weight", shape=(2, 3), dtype="float32", nbytes=24)
    >>> listing = Listing(path=Path("a.pt"), files=(Path("a.pt"),), tensors=(fc,))
    >>> [name for name, _ in skeleton(listing).named_parameters()]
    ['fc.weight']
    """
    root = nn.Module()
    made: dict[str, nn.Parameter] = {}
    for tensor in listing.tensors:
        *path, leaf = tensor.name.split(".")
        owner = root
        for part in path:
            # Not by add_module and its kin: they refuse "type" and other names that files have.
            inner = owner._modules.get(part) or nn.Module()
            owner._modules[part] = inner
            owner = inner
        empty = torch.empty(tensor.shape, device="meta")
        if tensor.is_buffer and not as_parameters:
            owner._buffers[leaf] = empty
        else:
            owner._parameters[leaf] = made.setdefault(
                tensor.same_as or tensor.name, nn.Parameter(empty)
            )
    return root


def apply_plan(stand_in: nn.Module, plan: Plan, *, everything: bool = False) -> Frozen:
    """Freeze a :func:`skeleton` by a plan.

    Args:
        stand_in: the skeleton.
        plan: the plan.
        everything: permit that nothing is left to train.

    Raises:
        SelectorError: a rule matches nothing, or selects by class, which a checkpoint can't tell.
        PlanError: rules are at odds, or nothing is left to train.
    """
    try:
        return freeze(stand_in, plan, everything=everything)
    except SelectorError as error:
        if "type:" not in str(error):
            raise
        raise SelectorError(
            "'type:' selects by class, and a checkpoint does not tell classes: select by name,"
            " or inspect the model that it belongs to"
        ) from error


def _canonical(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """The same tensors under canonical names, ties pointing at canonical names too."""
    tensors = list(tensors)
    raw = [tensor.name for tensor in tensors]
    names = dict(zip(raw, canonical_keys(raw), strict=True))
    if len(set(names.values())) < len(names):
        return tensors  # two tensors would get one name: the prefixes tell them apart
    return [
        replace(
            tensor,
            name=names[tensor.name],
            same_as=None if tensor.same_as is None else names[tensor.same_as],
        )
        for tensor in tensors
    ]


def _files(path: Path) -> tuple[Path, ...]:
    """The files that hold the tensors of the checkpoint ``path``."""
    if path.is_dir():
        path = _main_file(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if not path.name.endswith(".index.json"):
        return (path,)
    shards = tuple(path.parent / name for name in _shard_names(path))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(
            f"{path} names {len(shards)} files, of which {', '.join(missing[:3])}"
            f"{' and others are' if len(missing) > 3 else ' is' if len(missing) == 1 else ' are'}"
            " not beside it: fetch the checkpoint again"
        )
    return shards


def _main_file(folder: Path) -> Path:
    """The index or the one file that stands for the checkpoint in ``folder``."""
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others[0]
    if others:
        names = ", ".join(file.name for file in others[:4])
        raise CheckpointError(
            f"folder {folder} holds {len(others)} .safetensors files ({names}"
            f"{', …' if len(others) > 4 else ''}) and no index: name one of them"
        )
    raise CheckpointError(
        f"folder {folder} holds no checkpoint: expected a .safetensors file or one of"
        f" {', '.join(_FOLDER_FILES)}"
    )


def _shard_names(index: Path) -> list[str]:
    try:
        return sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except OSError as error:
        raise CheckpointError(f"{index} could not be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no index of a checkpoint: expected JSON with a 'weight_map' from tensor"
            " names to file names"
        ) from error


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A sort key under which the numbers in a name count as numbers.

    >>> sorted(["layer.10.w", "layer.2.w"], key=_natural)
    ['layer.2.w', 'layer.10.w']
    """
    return [
        (part.isdigit(), int(part) if part.isdigit() else 0, part)
        for part in re.split(r"(\d+)", name)
    ]
