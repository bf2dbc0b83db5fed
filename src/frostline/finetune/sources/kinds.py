"""The kinds of task: which a model was made for, and which the data suit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frostline.errors import ConfigError, ModelSourceError
from frostline.finetune.sources.base import Kind
from frostline.finetune.sources.columns import find_column_if_any, has_all
from frostline.finetune.sources.raw import Raw


@dataclass(frozen=True, kw_only=True)
class Head:
    """How transformers does a kind of task.

    Attributes:
        auto: the class that loads such models.
        mapping: in transformers' ``modeling_auto``, the models that can.
        endings: of the names of the classes whose checkpoints have such a head.
    """

    auto: str
    mapping: str
    endings: tuple[str, ...]


HEADS: Mapping[Kind, Head] = {
    "image-classification": Head(
        auto="AutoModelForImageClassification",
        mapping="MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
        endings=("ForImageClassification", "ForImageClassificationWithTeacher"),
    ),
    "text-classification": Head(
        auto="AutoModelForSequenceClassification",
        mapping="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
        endings=("ForSequenceClassification",),
    ),
    "token-classification": Head(
        auto="AutoModelForTokenClassification",
        mapping="MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
        endings=("ForTokenClassification",),
    ),
    "causal-lm": Head(
        auto="AutoModelForCausalLM",
        mapping="MODEL_FOR_CAUSAL_LM_MAPPING",
        endings=("ForCausalLM", "LMHeadModel"),
    ),
}
"""The kinds that transformers loads."""


def kind_of_architecture(architectures: object) -> Kind | None:
    """The kind of the class that wrote a checkpoint; None if it has no head, or another.

    >>> kind_of_architecture(["GPT2LMHeadModel"]), kind_of_architecture(["BertForMaskedLM"])
    ('causal-lm', None)
    """
    names = architectures if isinstance(architectures, list) else []
    for kind, head in HEADS.items():
        if any(str(name).endswith(head.endings) for name in names):
            # BertLMHeadModel is what an encoder becomes as a decoder; it is rare, and says so.
            return kind
    return None


def kind_of_data(raw: Raw, columns: Mapping[str, str]) -> Kind | None:
    """The kind that the columns suit; None if they suit none."""
    if has_all(raw, ("image", "label"), columns):
        return "image-classification"
    if has_all(raw, ("tokens", "tags"), columns):
        return "token-classification"
    if has_all(raw, ("text", "label"), columns):
        return "text-classification"
    return "causal-lm" if find_column_if_any(raw, "text", columns) else None


def choose_kind(
    asked: Kind | None, config: Any, raw: Raw, columns: Mapping[str, str], model: str
) -> tuple[Kind, tuple[str, ...]]:
    """The kind of task and a note about it: as asked, else the model's own, else the data's.

    Raises:
        ConfigError: neither tells.
        ModelSourceError: the model can't do it.
    """
    own, suited = kind_of_architecture(config.architectures), kind_of_data(raw, columns)
    kind = asked or own or suited
    if kind is None or kind == "custom":
        raise ConfigError(
            f"model {model!r} and data {raw.source!r} (columns"
            f" {', '.join(raw.train.column_names)}) do not tell what is to be learned: give"
            f" task, one of {', '.join(HEADS)}, and columns if they have other names"
        )
    check_can(config, kind, model)
    if asked is None and own is not None and suited not in (None, own):
        note = f"the task is {kind}, as the model was made for, though the data suit {suited} too"
        return kind, (f"{note}: task says which",)
    return kind, ()


def check_can(config: Any, kind: Kind, model: str) -> None:
    """Raise ModelSourceError unless transformers has a head for ``kind`` on such a model."""
    able = [each for each in HEADS if _is_able(config, each)]
    if kind not in able:
        offer = f"it can do {', '.join(able)}" if able else "it can do none of the tasks here"
        raise ModelSourceError(
            f"model {model!r} ({config.model_type}) has no head for {kind}; {offer}. Take another"
            " model, or another task"
        )


def _is_able(config: Any, kind: Kind) -> bool:
    from transformers.models.auto import modeling_auto

    if type(config) not in getattr(modeling_auto, HEADS[kind].mapping):
        return False
    # An encoder would see the token that it is to predict.
    is_encoder = type(config) in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING
    return kind != "causal-lm" or not is_encoder or bool(getattr(config, "is_decoder", False))
