"""Folders of images, a folder for each class; and images of any table as a model takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset

from frostline.errors import ConfigError
from frostline.finetune.sources.base import Note
from frostline.finetune.sources.extras import require
from frostline.finetune.sources.image_checks import check_images
from frostline.finetune.sources.raw import Raw, Table
from frostline.finetune.sources.splitting import choose_splits
from frostline.units import format_number_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

_SHOWN = 10


def has_images(folder: Path) -> bool:
    """Whether there is an image in the folder, or below."""
    return any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*"))


def read_image_folder(folder: Path, *, broken: Literal["refuse", "skip"], note: Note) -> Raw:
    """Read a folder with a folder of images for each class.

    There may be one more floor: ``train``, and ``validation``, ``val`` or ``test``. Images are
    decoded once to see whether they are whole; what was seen is kept in the cache folder.

    Args:
        folder: ``folder/cat/1.jpg`` or ``folder/train/cat/1.jpg``.
        broken: whether broken images are an error, or left out.
        note: is told before a long check.

    Raises:
        ConfigError: there are no images or no classes; the splits have different classes; or
            images are broken: up to ten of them are named.
    """
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    train, held_out = choose_splits(path.name for path in inner)
    roots = [folder / name for name in (train, held_out) if name] if train else [folder]
    found = [_images_by_class(root) for root in roots]
    checks = check_images([path for part in found for path, _ in part], folder, note)
    notes = []
    if checks.broken:
        message = _broken(checks.broken, sum(map(len, found)), folder)
        if broken == "refuse":
            raise ConfigError(
                f"{message}. Replace or remove them, or leave them out by --broken skip"
            )
        notes.append(f"left out: {message}")
        bad = {path for path, _ in checks.broken}
        found = [[each for each in part if each[0] not in bad] for part in found]
    names = sorted({name for _, name in found[0]})
    _check_classes(found, names, roots)
    tables = [_table(part, names) for part in found]
    return Raw(
        source=str(folder),
        train=tables[0],
        held_out=tables[1] if len(tables) > 1 else None,
        digest=checks.digest,
        notes=tuple(notes),
    )


def _images_by_class(root: Path) -> list[tuple[Path, str]]:
    """The images below ``root`` with their class, in the order of their names."""
    found = [
        (path, path.relative_to(root).parts[0])
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    loose = [path for path, name in found if path.name == name]
    if not found or len(loose) == len(found):
        what = "no images" if not found else "images, but no folders for their classes"
        raise ConfigError(
            f"folder {root} has {what}: expected a folder for each class with its images in it,"
            f" such as {root}/cat/1.jpg and {root}/dog/1.jpg"
        )
    if loose:
        raise ConfigError(
            f"folder {root} has {format_number_of(len(loose), 'image')} outside of the classes'"
            f" folders, such as {loose[0].name}: put them into the folder of their class"
        )
    return found


def _check_classes(
    found: Sequence[Sequence[tuple[Path, str]]], names: Sequence[str], roots: Sequence[Path]
) -> None:
    if not all(found):
        empty = roots[next(place for place, part in enumerate(found) if not part)]
        raise ConfigError(f"folder {empty} has no image that is whole")
    for root, part in zip(roots[1:], found[1:], strict=True):
        strange = sorted({name for _, name in part} - {*names})
        if strange:
            raise ConfigError(
                f"folder {root} has the classes {', '.join(strange[:5])}, which {roots[0]} does not"
                f" have (it has {', '.join(names[:5])}): nothing could learn them"
            )


def _broken(broken: Sequence[tuple[Path, str]], count: int, folder: Path) -> str:
    lines = [f"{path.relative_to(folder)} ({reason})" for path, reason in broken[:_SHOWN]]
    more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    return (
        f"{len(broken)} of {format_number_of(count, 'image')} in {folder}"
        f" {'is' if len(broken) == 1 else 'are'} broken: {', '.join(lines)}{more}"
    )


def _table(part: Sequence[tuple[Path, str]], names: Sequence[str]) -> Table:
    datasets = require("datasets", reason="an image folder")
    columns = {
        "image": [str(path) for path, _ in part],
        "label": [names.index(name) for _, name in part],
    }
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


class ImageSamples(Dataset[tuple[Tensor, int]]):
    """Images as a model takes them, with their classes; nothing random, so each is always the same.

    Args:
        table: with a column of images, decoded as they are asked for.
        column: its name.
        classes: the class of each row of the table.
        positions: the rows that are samples.
        transform: from a PIL image in RGB to a float tensor (channels, height, width).
    """

    def __init__(
        self,
        table: Table,
        column: str,
        classes: Sequence[int],
        positions: Sequence[int],
        transform: Any,
    ) -> None:
        self._images = table.select_columns([column])
        self._column = column
        self._classes = classes
        self._positions = positions
        self._transform = transform

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self._positions[index]
        image = self._images[row][self._column]
        return self._transform(image.convert("RGB")), self._classes[row]
