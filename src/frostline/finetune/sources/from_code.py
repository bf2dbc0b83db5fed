"""Models that are no folder: from code, or timm's, on data of any form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from frostline.errors import ConfigError, ModelSourceError
from frostline.finetune.models import load_model
from frostline.finetune.sources.assembling import assemble
from frostline.finetune.sources.base import Kind, Sources
from frostline.finetune.sources.code import is_code, load_data
from frostline.finetune.sources.image_tasks import image_classification, plain_transform
from frostline.finetune.sources.kinds import kind_of_data
from frostline.finetune.sources.reading import read_data
from frostline.finetune.sources.tasks import Asked, Samples
from frostline.finetune.sources.timm_models import TimmModel, head_of


def open_timm(name: str, data: str, kind: Kind | None, asked: Asked) -> Sources:
    """Load a model of timm and the data.

    Args:
        name: ``timm:resnet50``, or the name alone.
        data: what the user called the data.
        kind: None, or image classification.
        asked: what the user said about the data.

    Raises:
        FrostlineError: as :func:`frostline.finetune.sources.opening.open_sources`.
    """
    if kind not in (None, "image-classification"):
        raise ModelSourceError(f"model {name!r} of timm is for image-classification, not {kind}")
    source = TimmModel(name)
    late = _LateTransform()
    samples, digest, notes = _samples_for_timm(data, late, asked)
    if samples.classes is None:
        raise ConfigError(
            f"data {data!r}: model {name!r} needs a head, for how many classes? Give the data"
            " set a list 'classes' with their names"
        )
    model = source.build(len(samples.classes.names), seed=asked.seed)
    late.transform, recipe = source.transform(model)
    head = head_of(model)
    return assemble(
        "image-classification",
        model,
        replace(samples, recipe=(*samples.recipe, recipe)),
        head=head,
        new=tuple(
            each
            for each, _ in model.named_parameters()
            if each.startswith(tuple(f"{module}." for module in head))
        ),
        notes=notes,
        digest=digest,
    )


def _samples_for_timm(
    data: str, transform: Any, asked: Asked
) -> tuple[Samples, str, tuple[str, ...]]:
    """Pairs of image and class, the digest of the data, and notes."""
    if is_code(data):
        return load_data(data, asked), "", ()
    raw = read_data(data, asked)
    samples = image_classification(raw, asked, transform=transform, recipe=(), as_dict=False)
    return samples, raw.digest, raw.notes


def open_code(name: str, data: str, kind: Kind | None, asked: Asked) -> Sources:
    """Load a model from code, which is trained as it is, and the data.

    Args:
        name: as :func:`frostline.finetune.models.load_model` takes it.
        data: code too, or images.
        kind: what is to be learned, where the data are images.
        asked: what the user said about the data.

    Raises:
        FrostlineError: as :func:`frostline.finetune.sources.opening.open_sources`.
    """
    if is_code(data):
        model = load_model(name)
        return assemble("custom", model, load_data(data, asked), digest="")
    raw = read_data(data, asked)
    suited = kind or kind_of_data(raw, asked.columns)
    if suited != "image-classification":
        raise ConfigError(
            f"data {data!r}: a model from code has no tokenizer: give data as code too,"
            " path/data.py:build, or a folder with a Hugging Face model"
        )
    samples = image_classification(
        raw, asked, transform=plain_transform, recipe="plain 224", as_dict=False
    )
    note = "images are resized to 224 x 224 and normalised as ImageNet's are: data.py:build else"
    return assemble(
        "image-classification",
        load_model(name),
        samples,
        notes=(*raw.notes, note),
        digest=raw.digest,
    )


class _LateTransform:
    """A transform that the model decides, which is made when the data have told the classes."""

    transform: Any

    def __call__(self, image: Any) -> Any:
        return self.transform(image)
