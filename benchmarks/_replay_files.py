"""Digits as image files: JPEG where Pillow is installed, else PPM, which is read here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _replay_jobs import SIDE, images
from torch import Tensor
from torch.utils.data import Dataset

FILE_SIDE = 256
HAS_PILLOW = importlib.util.find_spec("PIL") is not None
FORMAT = "jpg" if HAS_PILLOW else "ppm"


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images of 256 pixels in files, decoded and made smaller to 48 pixels whenever one is wanted.

    Args:
        folder: where the files are written, now.
        count: how many.
    """

    def __init__(self, folder: Path, count: int) -> None:
        data = images(count)
        self.labels = [int(label) for label in data.tensors[1]]
        self.paths = [folder / f"{number}.{FORMAT}" for number in range(count)]
        for path, picture in zip(self.paths, data.tensors[0], strict=True):
            _write(path, picture)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = _read(self.paths[index])
        return pixels.permute(2, 0, 1).float().div_(255), self.labels[index]


def _write(path: Path, picture: Tensor) -> None:
    large = F.interpolate(picture[None], size=(FILE_SIDE, FILE_SIDE), mode="bilinear")[0]
    # Grain, as cameras have: a flat picture would be decoded in no time.
    grain = torch.rand(large.shape, generator=torch.Generator().manual_seed(len(path.name)))
    pixels = (large * 200 + grain * 55).byte().permute(1, 2, 0).contiguous().numpy()
    if HAS_PILLOW:
        from PIL import Image

        Image.fromarray(pixels).save(path, quality=90)
    else:
        path.write_bytes(b"P6 %d %d 255\n" % (FILE_SIDE, FILE_SIDE) + pixels.tobytes())


def _read(path: Path) -> Tensor:
    """Pixels as bytes: (48, 48, 3)."""
    if HAS_PILLOW:
        from PIL import Image

        with Image.open(path) as opened:
            small = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(small).copy())
    pixels = np.frombuffer(path.read_bytes(), dtype=np.uint8, count=3 * FILE_SIDE**2, offset=15)
    large: Any = torch.from_numpy(pixels.reshape(FILE_SIDE, FILE_SIDE, 3).copy())
    small = F.interpolate(
        large.permute(2, 0, 1)[None].float(), size=(SIDE, SIDE), mode="bilinear", antialias=True
    )
    return small[0].permute(1, 2, 0).byte()
