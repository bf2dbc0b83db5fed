"""What a fine-tuning job is told: defaults, then a YAML file, then flags."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from frostline.documents import parse_yaml, read_text
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


Selectors = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Whole = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]


class FinetuneConfig(BaseModel):
    """A fine-tuning job. Paths are taken from the folder that the command runs in.

    Attributes:
        model: ``digits-cnn`` (pretrained), another built-in name, ``package.module:factory`` or
            ``path/model.py:factory``. What a factory gives is trained as it is.
        data: ``digits``, the only data set so far: 8 x 8 scans of the digits 5-9.
        train: selectors of what is trained; all else is frozen.
        freeze: selectors of what is frozen; all else is trained.
        plan: path of a plan file, in place of the two.
        schedule: when to freeze what: a name, a file, a mapping with a schedule's options, or a
            list of phases. What ``train``, ``freeze`` or ``plan`` freezes stays frozen then, and
            the schedule decides about the rest.
        epochs: passes over the training scans.
        lr: the optimizer's learning rate.
        optimizer: name of a class in ``torch.optim``.
        optimizer_options: further keyword arguments of :func:`frostline.optimizer`: those of the
            class, such as ``betas``, and ``layer_decay`` and ``no_decay``.
        weight_decay: the optimizer's weight decay; None leaves its own default.
        batch_size: scans a step.
        seed: decides the held-out scans, the new head, order and dropout.
        out: folder in which the run's own folder is made.
        replay: whether the frozen part is computed once a scan and replayed from then on: ``on``
            keeps it in the cache folder, for later runs too; ``auto`` does so if reading is faster
            here than computing, and there is room; ``memory``, or the path of a folder, keeps it
            there; ``off`` computes all. The results are bit for bit the same.

    >>> FinetuneConfig(train="head").train
    ('head',)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "digits-cnn"
    data: Literal["digits"] = "digits"
    train: Selectors = ()
    freeze: Selectors = ()
    plan: Path | None = None
    schedule: Annotated[
        str | dict[str, Any] | list[Any] | None,
        BeforeValidator(lambda value: value if value is None else _schedule(value)),
    ] = None
    epochs: Whole = Field(default=10, ge=1)
    lr: Number = Field(default=1e-3, gt=0)
    optimizer: str = "AdamW"
    optimizer_options: dict[str, Any] = Field(default_factory=dict)
    weight_decay: Number | None = Field(default=None, ge=0)
    batch_size: Whole = Field(default=32, ge=1)
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
    fields = _read_fields(path) if path else {}
    if any(name in flags for name in WHAT_TO_TRAIN):
        fields = {name: value for name, value in fields.items() if name not in WHAT_TO_TRAIN}
    try:
        config = FinetuneConfig.model_validate({**fields, **flags})
    except ValidationError as error:
        problems = (_problem(details, path, flags) for details in error.errors()[:5])
        raise ConfigError("; ".join(problems)) from error
    for name in ("lr", "weight_decay"):
        if name in config.optimizer_options:
            raise ConfigError(f"optimizer_options: {name} is a field of its own: write it there")
    given = [name for name in WHAT_TO_TRAIN if getattr(config, name)]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} can't go together: give one of them")
    return config


def _read_fields(path: Path) -> dict[str, object]:
    text = read_text(path, called="the configuration", error=ConfigError)
    document = parse_yaml(text, source=str(path), error=ConfigError)
    if document is None:
        raise ConfigError(f"{path} is empty: write a field, such as 'epochs: 5', or leave it out")
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: expected fields such as 'epochs: 5', got {_SHORT.repr(document)}"
        )
    return {str(name): value for name, value in document.items()}


def _problem(details: Any, path: Path | None, flags: Mapping[str, object]) -> str:
    """One of pydantic's findings as: where, which field, what was got, what is expected."""
    field = str(details["loc"][0])
    place = f"--{field.replace('_', '-')}" if field in flags or path is None else f"{path}: {field}"
    if details["type"] == "extra_forbidden":
        known = list(FinetuneConfig.model_fields)
        near = difflib.get_close_matches(field, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return f"{place}: there is no such field; {hint}"
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{place}: got {_SHORT.repr(details['input'])}, expected {message}"
