"""Pretrained models of transformers: from a folder, with a head for the task at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frostline.errors import ModelSourceError
from frostline.finetune.blame import describe
from frostline.finetune.sources.base import Kind
from frostline.finetune.sources.extras import quiet, require
from frostline.finetune.sources.kinds import HEADS, kind_of_architecture
from frostline.finetune.sources.labels import Classes
from frostline.selection import select
from frostline.units import format_names

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, kw_only=True, eq=False)
class Pretrained:
    """A model with its pretrained weights.

    Attributes:
        model: in float32, on the CPU.
        head: selectors of what the head is.
        new: names of the parameters that the checkpoint does not have.
        notes: what the user should know, a line each.
    """

    model: nn.Module
    head: tuple[str, ...]
    new: tuple[str, ...]
    notes: tuple[str, ...]


def load_config(folder: Path) -> Any:
    """The configuration of a model's folder.

    Raises:
        ModelSourceError: there is none, or transformers doesn't know the model.
    """
    transformers = require("transformers", reason=f"model {str(folder)!r}")
    if not (folder / "config.json").is_file():
        raise ModelSourceError(
            f"folder {folder} has no config.json: expected a folder as save_pretrained writes it"
        )
    try:
        with quiet():
            return transformers.AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise ModelSourceError(
            f"{folder / 'config.json'} can't be used: {_line(error)}. (Models that bring code of"
            " their own are not loaded: write a factory, file.py:build)"
        ) from error


def known_classes(config: Any, kind: Kind) -> dict[int, str] | None:
    """The classes that the checkpoint's head tells apart; None if it has no head for ``kind``."""
    if kind == "causal-lm" or kind_of_architecture(config.architectures) != kind:
        return None
    return {int(number): str(name) for number, name in config.id2label.items()}


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder; it can pad.

    Raises:
        ModelSourceError: there is none, or it does not load.
    """
    from transformers import AutoTokenizer

    # Without files transformers makes an empty tokenizer, to which every word is unknown.
    _check_there(folder, _TOKENIZER_FILES, "tokenizer")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise ModelSourceError(
            f"the tokenizer in {folder} does not load: {_line(error)}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ModelSourceError(
            f"the tokenizer in {folder} has no padding token, and no end-of-text token that could"
            " serve: set pad_token in its tokenizer_config.json"
        )
    return tokenizer


def load_image_processor(folder: Path) -> Any:
    """The image processor of a model's folder, the one that needs Pillow only.

    Raises:
        ModelSourceError: there is none, or it does not load.
    """
    transformers = require("transformers", reason="an image model")
    require("PIL", reason="an image model")
    _check_there(folder, _PROCESSOR_FILES, "image processor")
    try:
        with quiet():
            # The other backend gives other bits, and would make a run depend on what is installed.
            return transformers.AutoImageProcessor.from_pretrained(folder, **_pillow_backend())
    except Exception as error:
        raise ModelSourceError(
            f"the image processor in {folder} does not load: {_line(error)}"
        ) from error


def load_pretrained(
    folder: Path, config: Any, kind: Kind, classes: Classes | None, *, seed: int
) -> Pretrained:
    """Load a model with its head sized to the classes.

    Args:
        folder: with ``config.json`` and safetensors (or ``pytorch_model.bin``, of which tensors
            alone are unpickled).
        config: the folder's.
        kind: what it is to do.
        classes: what its head is to tell apart; None for language modelling.
        seed: of what the checkpoint does not have.

    Raises:
        ModelSourceError: the weights are missing, damaged or of another model.
    """
    transformers = require("transformers", reason=f"model {str(folder)!r}")
    fields: dict[str, Any] = {}
    if classes is not None:
        fields = {
            "id2label": dict(enumerate(classes.names)),
            "label2id": {name: number for number, name in enumerate(classes.names)},
        }
        if kind == "text-classification":
            fields["problem_type"] = "single_label_classification"
    model, loaded = _from_pretrained(
        getattr(transformers, HEADS[kind].auto),
        folder,
        seed=seed,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **fields,
    )
    model = model.float()  # buffers of some models keep the checkpoint's type
    missing = {*loaded["missing_keys"], *(_name(each) for each in loaded["mismatched_keys"])}
    new = tuple(name for name, _ in model.named_parameters() if name in missing)
    own = [name for name, _ in model.named_parameters() if name not in missing]
    if not own:
        raise ModelSourceError(
            f"the checkpoint in {folder} has none of the tensors of {type(model).__name__}: is its"
            " config.json that of another model?"
        )
    head = _head_of(model, new)
    return Pretrained(model=model, head=head, new=new, notes=_notes(config, classes, new))


def load_as_saved(folder: Path, *, seed: int) -> nn.Module:
    """The model that was saved in a folder: of the same class, in the same dtypes.

    Args:
        folder: as :func:`load_pretrained` takes it.
        seed: of what the checkpoint does not have.

    Raises:
        ModelSourceError: it is no folder of a model that transformers knows, or does not load.
    """
    transformers = require("transformers", reason=f"model {str(folder)!r}")
    saved = (*(load_config(folder).architectures or ()), "AutoModel")
    known = next(each for each in saved if hasattr(transformers, each))
    model: nn.Module = _from_pretrained(
        getattr(transformers, known), folder, seed=seed, dtype="auto"
    )
    return model


def without_weights(folder: Path, kind: Kind) -> nn.Module:
    """The model that a folder's configuration describes, with a head for ``kind``, on ``meta``.

    Raises:
        ModelSourceError: there is no configuration, or transformers doesn't know the model.
    """
    transformers = require("transformers", reason=f"model {str(folder)!r}")
    config = load_config(folder)
    with quiet(), torch.device("meta"):
        model: nn.Module = getattr(transformers, HEADS[kind].auto).from_config(config)
    return model


def _from_pretrained(auto: Any, folder: Path, *, seed: int, **options: Any) -> Any:
    for file in sorted(folder.iterdir()):
        if not os.access(file, os.R_OK):  # safetensors says of such a file that there is none
            raise ModelSourceError(f"{file} can't be read: permission denied")
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return auto.from_pretrained(folder, **options)
    except Exception as error:
        raise ModelSourceError(f"the model in {folder} does not load: {_line(error)}") from error


def _head_of(model: Any, new: Iterable[str]) -> tuple[str, ...]:
    """Selectors of all that is not the backbone, and of what in the backbone is new.

    None where a head's tensor is the embedding's too: training it would train both.
    """
    backbone = f"{model.base_model_prefix}."
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shared = {id(each) for name, each in parameters.items() if name.startswith(backbone)}
    modules = [
        name.partition(".")[0]
        for name, parameter in parameters.items()
        if not name.startswith(backbone) and id(parameter) not in shared
    ]
    modules += [name.rpartition(".")[0] for name in new if name.startswith(backbone)]
    return tuple(_exact(model, name) for name in dict.fromkeys(modules))


def _exact(model: nn.Module, module: str) -> str:
    """A selector of that module and no other."""
    wanted = {name for name, _ in model.named_parameters() if name.startswith(f"{module}.")}
    return module if {*select(model, module).names} <= wanted else f"{module}.**"


def _notes(config: Any, classes: Classes | None, new: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    if classes is not None and classes.is_models:
        notes.append(f"the model's head is kept: it tells {format_names(classes.names)} apart")
    elif classes is not None and not new:
        notes.append("the model's head has as many classes, of other names: it is where one starts")
    if new:
        notes.append(f"new, not pretrained: {format_names(new)}")
    stored = getattr(config, "dtype", None)
    if stored not in (None, torch.float32, "float32"):
        notes.append(
            f"the checkpoint is in {str(stored).removeprefix('torch.')}, trained as float32"
        )
    return tuple(notes)


def _check_there(folder: Path, names: Iterable[str], what: str) -> None:
    if not any((folder / name).is_file() for name in names):
        raise ModelSourceError(
            f"folder {folder} has no {what} ({', '.join(list(names)[:2])}): copy the files from"
            " the model that it was made of, or write them with save_pretrained"
        )


def _pillow_backend() -> dict[str, Any]:
    from transformers import __version__

    # transformers 5 chooses among backends by name, before that there was a fast one or not.
    return {"backend": "pil"} if int(__version__.partition(".")[0]) >= 5 else {"use_fast": False}


def _name(mismatched: Any) -> str:
    """The tensor's name: transformers gives it with both shapes, or alone."""
    return str(mismatched[0] if isinstance(mismatched, tuple) else mismatched)


def _line(error: BaseException) -> str:
    """The first line of what a library says, which may go on for many."""
    text = str(error).strip().splitlines()
    return text[0] if text and isinstance(error, OSError | ValueError) else describe(error)
