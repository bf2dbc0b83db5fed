from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from frostline.checkpoint.writing import Outgoing, write_safetensors
from frostline.errors import CheckpointError
from frostline.proof.fingerprint import content_pieces


def outgoing(name: str, tensor: Tensor) -> Outgoing:
    return Outgoing(
        name=name,
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        nbytes=tensor.nbytes,
        pieces=lambda: content_pieces(tensor),
    )


TENSORS = {
    "a": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "é": torch.randn(3, 5),
    "c": torch.tensor(7),
    "d": torch.randn(3).bfloat16(),
    "e": torch.zeros(0, 4),
}


def test_other_readers_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [outgoing(n, t) for n, t in TENSORS.items()], {"by": "us"})
    found = load_file(path)
    assert {name: t.tolist() for name, t in found.items()} == {
        name: t.tolist() for name, t in TENSORS.items()
    }


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, [outgoing(n, t) for n, t in TENSORS.items()])
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    places = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert set(places) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensor.numel() == 0 or places[name]["data_offsets"][0] % tensor.element_size() == 0


def test_no_tensors_at_all(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", [])
    assert load_file(tmp_path / "a.safetensors") == {}


def test_a_dtype_that_safetensors_lacks(tmp_path: Path) -> None:
    def pieces() -> Iterator[memoryview]:
        yield memoryview(b"ab")

    odd = Outgoing(name="w", dtype="bits8", shape=(2,), nbytes=2, pieces=pieces)
    with pytest.raises(CheckpointError, match=r"can't hold these tensors \(dtypes bits8\)"):
        write_safetensors(tmp_path / "a.safetensors", [odd])
