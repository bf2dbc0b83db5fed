"""Image classification: from a table with images to samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from frostline.errors import ModelSourceError
from frostline.finetune.blame import describe
from frostline.finetune.sources.base import Saveable
from frostline.finetune.sources.columns import find_column
from frostline.finetune.sources.images import ImageSamples
from frostline.finetune.sources.raw import Raw
from frostline.finetune.sources.tasks import Asked, Samples, classes_by_part, positions_by_split

PLAIN_SIDE = 224
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_SPREAD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def image_classification(
    raw: Raw,
    asked: Asked,
    *,
    transform: Callable[[Any], Tensor],
    recipe: object,
    known: Mapping[int, str] | None = None,
    companions: tuple[Saveable, ...] = (),
    as_dict: bool,
) -> Samples:
    """An image with a class.

    Args:
        raw: the data.
        asked: what the user said.
        transform: from a PIL image in RGB to a float tensor (channels, height, width).
        recipe: what decides the transform.
        known: the classes of the model's head, if it has one for this.
        companions: the image processor.
        as_dict: batches for a Hugging Face model; else pairs.

    Raises:
        ConfigError: columns or labels are missing or do not fit.
    """
    column = find_column(raw, "image", asked.columns)
    classes, numbers = classes_by_part(raw, asked, known)
    split = positions_by_split(raw, numbers[0], asked, classes.names)
    train, held_out = (
        ImageSamples(table, column, part, positions, transform)
        for table, part, positions in zip(
            (raw.train, raw.parts[-1]), (numbers[0], numbers[-1]), split, strict=True
        )
    )
    return Samples(
        train=train,
        held_out=held_out,
        classes=classes,
        collate=_as_dict if as_dict else _as_pair,
        companions=companions,
        recipe=(recipe, column, classes.names, *map(list, split)),
    )


class Processed:
    """A transform by a Hugging Face image processor.

    Args:
        processor: one that works on PIL images.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image: Any) -> Tensor:
        """One image as the model takes it."""
        try:
            pixels = self._processor(images=image, return_tensors="pt")["pixel_values"][0]
        except Exception as error:
            raise ModelSourceError(
                f"the model's {type(self._processor).__name__} failed on an image of"
                f" {image.width} x {image.height} pixels: {describe(error)}"
            ) from error
        assert isinstance(pixels, Tensor)
        return pixels


def plain_transform(image: Any) -> Tensor:
    """An image as most networks for ImageNet take it: 3 x 224 x 224, its middle, normalised."""
    scale = 256 / min(image.size)
    image = image.resize([max(256, round(side * scale)) for side in image.size], 2)
    left, top = ((side - PLAIN_SIDE) // 2 for side in image.size)
    image = image.crop((left, top, left + PLAIN_SIDE, top + PLAIN_SIDE))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(PLAIN_SIDE, PLAIN_SIDE, 3).permute(2, 0, 1).float() / 255
    return (pixels - _MEAN) / _SPREAD


def _as_dict(samples: Sequence[tuple[Tensor, int]]) -> dict[str, Tensor]:
    pixels, classes = _as_pair(samples)
    return {"pixel_values": pixels, "labels": classes}


def _as_pair(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    pixels, classes = zip(*samples, strict=True)
    return torch.stack(pixels), torch.tensor(classes)
