"""A delta that is cut, altered or forged is refused, and the model is left alone."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xxhash
from deltas import contents, same
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import frostline as fl
from frostline.checkpoint import load_trained, merge_delta, save_trained, verify_checkpoints
from frostline.errors import CheckpointError


def small() -> tuple[nn.Sequential, nn.Sequential]:
    base = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model = copy.deepcopy(base)
    fl.freeze(model, all_but="2")
    with torch.no_grad():
        model[2].weight.add_(1)
    return base, model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tuned.safetensors"


def refused(model: nn.Module, path: Path) -> str:
    before = contents(model)
    with pytest.raises(CheckpointError) as caught:
        load_trained(model, path)
    assert same(contents(model), before)
    return str(caught.value)


def test_cut_at_any_place(path: Path) -> None:
    base, model = small()
    save_trained(model, path)
    whole = path.read_bytes()
    for size in sorted(
        {0, 1, 7, 8, 9, *range(10, len(whole), 37), *range(len(whole) - 40, len(whole))}
    ):
        path.write_bytes(whole[:size])
        assert "damaged" in refused(base, path), size


def test_any_bit_flipped(path: Path) -> None:
    base, model = small()
    save_trained(model, path)
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    places = [*range(8), *draw.sample(range(8, length), 150), *range(length, len(whole))]
    for place in places:
        altered = bytearray(whole)
        altered[place] ^= 1 << draw.randrange(8)
        path.write_bytes(altered)
        assert refused(base, path), place


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda whole: whole + b"\0", id="a byte more"),
        pytest.param(lambda whole: whole + whole, id="twice"),
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: b"\xff" * 8 + whole[8:], id="a header of 2^64 bytes"),
        pytest.param(lambda whole: b"{" * 5000, id="no file of ours"),
    ],
)
def test_other_damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    base, model = small()
    save_trained(model, path)
    path.write_bytes(change(path.read_bytes()))
    assert "damaged" in refused(base, path)


def test_an_altered_tensor_is_named(path: Path) -> None:
    base, model = small()
    save_trained(model, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert re.search(r"was altered: 2\.(weight|bias) is not as it was saved", refused(base, path))


def forge(path: Path, change: Callable[[dict[str, object]], object], *, sign: bool = True) -> None:
    """Rewrite the header, with a checksum that fits."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    document = json.loads(metadata["frostline"])
    document = change(document) or document
    text = document if isinstance(document, str) else json.dumps(document)
    checksum = xxhash.xxh3_128_hexdigest(text.encode()) if sign else metadata["frostline_checksum"]
    save_file(tensors, path, {"frostline": text, "frostline_checksum": checksum})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda d: d.update(version=2), "version 2, .+ reads version 1", id="newer"),
        pytest.param(lambda d: d.pop("version") and None, "of version None", id="no version"),
        pytest.param(lambda d: d.update(version=True), "of version True", id="odd version"),
        pytest.param(lambda d: d.update(plan="rules: 3"), "its header", id="no plan"),
        pytest.param(lambda d: d.update(base="0" * 32), "its header", id="another fold"),
        pytest.param(lambda d: d["tensors"].pop() and None, r"2\.bias is not", id="a tensor less"),
        pytest.param(lambda d: d["tensors"][0].update(names=[]), "its header", id="no name"),
        pytest.param(lambda d: d["tensors"][0].pop("dtype") and None, "its header", id="no dtype"),
        pytest.param(lambda d: d["tensors"][-1].update(shape=[5]), r"2\.bias is not", id="shape"),
        pytest.param(lambda d: d["tensors"][-1].update(names=["3"]), "is not as it was", id="name"),
        pytest.param(lambda d: "[1, 2]", "its header", id="a list"),
        pytest.param(lambda d: "[" * 100_000, "its header", id="deep"),
    ],
)  # fmt: skip
def test_a_header_that_makes_no_sense(
    path: Path, change: Callable[[dict[str, object]], object], said: str
) -> None:
    base, model = small()
    save_trained(model, path)
    forge(path, change)
    assert re.search(said, refused(base, path))


def test_a_header_without_its_checksum(path: Path) -> None:
    base, model = small()
    save_trained(model, path)
    forge(path, lambda d: d.update(plan=d["plan"] + "\n"), sign=False)
    assert "its header is not as it was saved" in refused(base, path)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda base, delta, out: verify_checkpoints(base, delta), id="verify"),
        pytest.param(lambda base, delta, out: verify_checkpoints(delta, base), id="as a base"),
        pytest.param(merge_delta, id="merge"),
    ],
)
def test_whoever_reads_it_notices(
    tmp_path: Path, path: Path, use: Callable[[Path, Path, Path], object]
) -> None:
    base, model = small()
    save_trained(model, path)
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged or was altered"):
        use(tmp_path / "base.safetensors", path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("write", "said"),
    [
        pytest.param(lambda path: None, "there is no file", id="missing"),
        pytest.param(lambda path: path.mkdir(), "there is no file", id="a folder"),
        pytest.param(
            lambda path: save_file({"w": torch.zeros(1)}, path),
            "is no delta: fl.save_trained writes one",
            id="another safetensors file",
        ),
        pytest.param(
            lambda path: torch.save({"w": torch.zeros(1)}, path),
            "is damaged or no safetensors file",
            id="a pickle",
        ),
    ],
)
def test_what_is_no_delta(path: Path, write: Callable[[Path], object], said: str) -> None:
    base, _ = small()
    write(path)
    assert said in refused(base, path)
