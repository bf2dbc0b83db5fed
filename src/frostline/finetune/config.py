"""What a fine-tuning job is told: defaults, then a YAML file, then flags."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from frostline.documents import lines_of, parse_yaml, read_text
from frostline.errors import ConfigError

WHAT_TO_TRAIN = ("train", "freeze", "plan")
"""The three ways to say what is trained; a job takes at most one."""

REPLAY_WORDS = ("auto", "on", "off", "memory")
"""What ``replay`` may say; anything else is a folder."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = _SHORT.maxlist = _SHORT.maxdict = 3


def _as_list(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return value
    raise ValueError("Input should be a selector or a list of selectors")


def _not_bool(value: object) -> object:
    # YAML reads "on", "yes" and "true" as True, which pydantic would count as the number 1.
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


def _replay_word(value: object) -> object:
    # YAML reads "on" and "off" as True and False.
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | Path) and str(value).strip():
        return str(value)
    raise ValueError("Input should be auto, on, off, memory or a folder")


def _schedule(value: object) -> object:
    is_name = isinstance(value, str) and bool(value.strip())
    if is_name or (isinstance(value, dict | list) and value):
        return value
    raise ValueError("Input should be a schedule's name, its options, or a file")


TASKS = ("image-classification", "text-classification", "token-classification", "causal-lm")
"""What ``task`` may say where the model and the data leave it open."""

Task = Literal["image-classification", "text-classification", "token-classification", "causal-lm"]
Selectors = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Whole = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]


class FinetuneConfig(BaseModel):
    """A fine-tuning job. Paths are taken from the folder that the command runs in.

    Attributes:
        model: ``digits-cnn`` (pretrained), a Hugging Face name or folder, a timm name,
            ``package.module:factory`` or ``path/model.py:factory``. What a factory gives is trained
            as it is.
        data: ``digits`` (8 x 8 scans of the digits 5-9), a folder of images, a CSV, JSONL, Parquet
            or text file or a folder of them, a Hugging Face data set, or ``path/data.py:factory``.
        task: what the model is to learn; found from the model and the data if left out.
        columns: role → column of a table, such as ``{text: review, label: stars}``; usual names
            are found without.
        max_length: tokens of a text, and of a block for causal language modelling; the model's own
            if left out.
        held_out: share that is held out, where the data has no part for it.
        broken: what to do about files that can't be read: ``refuse`` or ``skip``.
        train: selectors of what is trained; all else is frozen. If nothing is said, the head.
        freeze: selectors of what is frozen; all else is trained.
        plan: path of a plan file, in place of the two.
        schedule: when to freeze what: a name, a file, a mapping with a schedule's options, or a
            list of phases. What ``train``, ``freeze`` or ``plan`` freezes stays frozen then, and
            the schedule decides about the rest.
        epochs: passes over the training samples.
        early_stop: epochs without an improvement after which training ends; None for never.
        lr: the optimizer's learning rate.
        lr_schedule: ``constant``, or after the warmup down to 0 in a ``linear`` or ``cosine`` way.
        warmup: share of the steps in which the learning rate rises from 0.
        optimizer: name of a class in ``torch.optim``.
        optimizer_options: further keyword arguments of :func:`frostline.optimizer`: those of the
            class, such as ``betas``, and ``layer_decay`` and ``no_decay``.
        weight_decay: the optimizer's weight decay; None leaves its own default.
        batch_size: samples that go through the model at once, in each process.
        accumulate: batches whose gradients make one step.
        mixed_precision: ``no``, ``bf16``, or ``fp16`` (on a GPU).
        workers: processes that load batches; 0 for none.
        seed: decides the held-out samples, the new head, order and dropout.
        out: folder in which the run's own folder is made.
        replay: whether the frozen part is computed once a sample and replayed from then on: ``on``
            keeps it in the cache folder, for later runs too; ``auto`` does so if reading is faster
            here than computing, and there is room; ``memory``, or the path of a folder, keeps it
            there; ``off`` computes all. The results are bit for bit the same.

    >>> FinetuneConfig(train="head").train
    ('head',)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "digits-cnn"
    data: str = Field(default="digits", min_length=1)
    task: Task | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    max_length: Whole | None = Field(default=None, ge=2)
    held_out: Number = Field(default=0.25, gt=0, lt=1)
    broken: Literal["refuse", "skip"] = "refuse"
    train: Selectors = ()
    freeze: Selectors = ()
    plan: Path | None = None
    schedule: Annotated[
        str | dict[str, Any] | list[Any] | None,
        BeforeValidator(lambda value: value if value is None else _schedule(value)),
    ] = None
    epochs: Whole = Field(default=10, ge=1)
    early_stop: Whole | None = Field(default=None, ge=1)
    lr: Number = Field(default=1e-3, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Number = Field(default=0.0, ge=0, lt=1)
    optimizer: str = "AdamW"
    optimizer_options: dict[str, Any] = Field(default_factory=dict)
    weight_decay: Number | None = Field(default=None, ge=0)
    batch_size: Whole = Field(default=32, ge=1)
    accumulate: Whole = Field(default=1, ge=1)
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"], BeforeValidator(lambda v: "no" if v is False else v)
    ] = "no"  # which YAML reads as False
    workers: Whole = Field(default=0, ge=0)
    seed: Whole = Field(default=0, ge=0, lt=2**63)
    out: Path = Path("runs")
    replay: Annotated[str, BeforeValidator(_replay_word)] = "auto"

    def to_yaml(self) -> str:
        """The configuration as YAML, every field in it; :func:`load_config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(
    path: Path | None = None, flags: Mapping[str, object] | None = None
) -> FinetuneConfig:
    """Read a configuration file and lay the flags over it.

    Args:
        path: a YAML file with any of the fields of :class:`FinetuneConfig`; None for defaults.
        flags: fields given on the command line. Of ``train``, ``freeze`` and ``plan``, one that
            is given here replaces all three of the file.

    Raises:
        ConfigError: the file can't be read or is not YAML, a field is unknown, a value does not
            fit, or more than one of ``train``, ``freeze`` and ``plan`` is given.

    >>> load_config(flags={"epochs": 3, "train": ["head"]}).epochs
    3
    """
    flags = dict(flags or {})
    fields, lines = _read_fields(path) if path else ({}, {})
    if any(name in flags for name in WHAT_TO_TRAIN):
        fields = {name: value for name, value in fields.items() if name not in WHAT_TO_TRAIN}
    try:
        config = FinetuneConfig.model_validate({**fields, **flags})
    except ValidationError as error:
        faults = error.errors()[:5]
        problems = (_problem(fault, _place(fault, path, lines, flags)) for fault in faults)
        raise ConfigError("; ".join(problems)) from error
    for name in ("lr", "weight_decay"):
        if name in config.optimizer_options:
            raise ConfigError(f"optimizer_options: {name} is a field of its own: write it there")
    given = [name for name in WHAT_TO_TRAIN if getattr(config, name)]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} can't go together: give one of them")
    return config


def _read_fields(path: Path) -> tuple[dict[str, object], Mapping[tuple[str, ...], int]]:
    """The fields, and the line of each and of what is in it."""
    if path.is_dir():
        raise ConfigError(
            f"{path} is a folder, where a YAML file was expected: a model is given by --model, data"
            " by --data, a run that was cut short by --resume"
        )
    text = read_text(path, called="the configuration", error=ConfigError)
    document = parse_yaml(text, source=str(path), error=ConfigError)
    if document is None:
        raise ConfigError(f"{path} is empty: write a field, such as 'epochs: 5', or leave it out")
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: expected fields such as 'epochs: 5', got {_SHORT.repr(document)}"
        )
    return {str(name): value for name, value in document.items()}, lines_of(text)


def _place(
    fault: Any,
    path: Path | None,
    lines: Mapping[tuple[str, ...], int],
    flags: Mapping[str, object],
) -> str:
    """Where a value was given: the flag, or the file with the line and the field."""
    where = tuple(str(part) for part in fault["loc"])
    if where[0] in flags or path is None:
        return f"--{where[0].replace('_', '-')}"
    found = (lines[where[:end]] for end in range(len(where), 0, -1) if where[:end] in lines)
    return f"{path}, line {next(found, 1)}: {where[0]}"


def _problem(fault: Any, place: str) -> str:
    """One of pydantic's findings as: where, which field, what was got, what is expected."""
    field = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        known = list(FinetuneConfig.model_fields)
        near = difflib.get_close_matches(field, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return f"{place}: there is no such field; {hint}"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = message.partition(", unable to parse")[0]
    return f"{place}: got {_SHORT.repr(fault['input'])}, expected {message}"
