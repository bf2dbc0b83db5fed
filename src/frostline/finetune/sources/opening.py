"""What a job trains, from the names that the user gave for model and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from torch import nn

from frostline.errors import ModelSourceError
from frostline.finetune.models import load_model
from frostline.finetune.networks import BUILTIN
from frostline.finetune.sources.base import Kind, Note, Sources
from frostline.finetune.sources.columns import check_roles
from frostline.finetune.sources.from_code import open_code, open_timm
from frostline.finetune.sources.from_hugging_face import open_pretrained
from frostline.finetune.sources.hub import fetch_model, is_hub_name
from frostline.finetune.sources.nearby import suggesting
from frostline.finetune.sources.pretrained import load_as_saved
from frostline.finetune.sources.tasks import Asked
from frostline.finetune.sources.timm_models import TimmModel, is_timm_name

_NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


def open_sources(
    *,
    model: str,
    data: str,
    kind: Kind | None = None,
    seed: int = 0,
    held_out: float = 0.1,
    columns: Mapping[str, str] = _NO_COLUMNS,
    max_length: int | None = None,
    broken: Literal["refuse", "skip"] = "refuse",
    note: Note = lambda line: None,
) -> Sources:
    """Load the model and the data, and fit them to each other.

    Args:
        model: a folder as ``save_pretrained`` writes it, or a name on the Hugging Face hub;
            ``timm:NAME``; ``file.py:factory``, ``package.module:factory`` or a built-in name.
        data: a folder of images by class; a CSV, TSV, JSON lines, Parquet or text file, or a
            folder of them; a folder that ``datasets`` saved, or a name on the hub; or
            ``file.py:factory``.
        kind: what is to be learned; None for what the model was made for, or the data suit.
        seed: of the held-out samples and of weights that are new.
        held_out: share of the samples that is held out where the data set none apart.
        columns: from role (``text``, ``text_pair``, ``label``, ``tokens``, ``tags``, ``image``)
            to the name of its column, where that is not a usual one.
        max_length: tokens of a sample at most, or of a block; None for what suits model and data.
        broken: whether broken images are refused or left out.
        note: is told what takes time.

    Raises:
        ModelSourceError: there is no such model, or it can't do the task.
        ConfigError: there are no such data, they are damaged, or don't fit model and task; a
            package is missing; or there is no network.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     open_sources(model="tutorial", data=folder)
    Traceback (most recent call last):
    frostline.errors.ConfigError: folder ... has no images: expected a folder for each class with \
its images in it, such as .../cat/1.jpg and .../dog/1.jpg
    """
    check_roles(columns)
    asked = Asked(
        seed=seed,
        held_out=held_out,
        columns=columns,
        max_length=max_length,
        broken=broken,
        note=note,
    )
    if is_timm_name(model):
        return open_timm(model, data, kind, asked)
    folder = _folder_of(model, note)
    if folder is None:
        return open_code(model, data, kind, asked)
    return open_pretrained(model, folder, data, kind, asked)


def open_model(model: str, *, seed: int = 0, note: Note = lambda line: None) -> nn.Module:
    """Load a model alone, with the head that it was saved with, or none.

    Args:
        model: as :func:`open_sources` takes it.
        seed: of weights that its checkpoint does not have.
        note: is told what takes time.

    Raises:
        ModelSourceError: there is no such model, or it does not load.
        ConfigError: a package is missing.

    >>> open_model("tutorial").fc1
    Linear(in_features=8, out_features=4, bias=True)
    """
    if is_timm_name(model):
        return TimmModel(model).build(None, seed=seed)
    folder = _folder_of(model, note)
    return load_model(model) if folder is None else load_as_saved(folder, seed=seed)


def _folder_of(model: str, note: Note) -> Path | None:
    """The folder of a pretrained model; None if the name is that of code."""
    path = Path(model).expanduser()
    if model in BUILTIN:
        return None
    if path.is_dir():
        return path
    # What ends so is no name on the hub: code that lacks its factory, or weights without code.
    if ":" in model or path.is_file() or path.suffix in (".py", ".safetensors", ".pt", ".pth"):
        return None
    with suggesting(model, also=BUILTIN):
        if not is_hub_name(model) or model.startswith("."):
            raise ModelSourceError(
                f"model {model!r}: there is no such folder; give a folder, a name on the Hugging"
                " Face hub, timm:NAME or path/model.py:factory"
            )
        return fetch_model(model, note)
