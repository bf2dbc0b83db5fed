from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import OrderedDict, deque
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from frostline.replay.data_identity import data_fingerprint
from frostline.replay.data_identity_state import Unidentified, feed_state, feed_text

BASE = TensorDataset(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 2]))


class Resize:
    def __init__(self, size: int) -> None:
        self.size = size

    def __repr__(self) -> str:  # says nothing of the size
        return "Resize()"


class Crop(Resize):
    pass


class Slotted:
    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class Colour(Enum):
    RED = 1
    GREY = 2


class Folder(Dataset):
    """Made as torchvision's ImageFolder is; never to be read."""

    def __init__(self, root: Path, transform: Any = None) -> None:
        self.root = str(root)
        self.samples = [(str(file), place) for place, file in enumerate(sorted(root.iterdir()))]
        self.imgs = self.samples
        self.transform = transform

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("an item was loaded")


class HuggingFace(Dataset):
    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint


HuggingFace.__module__ = "datasets.arrow_dataset"


class ForwardsAll(Dataset):
    """Wraps a Hugging Face data set and changes its samples."""

    def __getattr__(self, name: str) -> Any:
        return getattr(HuggingFace("one"), name)


ForwardsAll.__module__ = "datasets.wrapper"


class OwnTensors(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0] * 2


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"12345")
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    return tmp_path


DIFFERENT = [
    pytest.param(BASE, id="tensors"),
    pytest.param(TensorDataset(torch.arange(6.0).reshape(3, 2)), id="fewer-tensors"),
    pytest.param(TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 2])), id="other-values"),
    pytest.param(Subset(BASE, [0, 2]), id="subset"),
    pytest.param(Subset(BASE, [2, 0]), id="subset-in-another-order"),
    pytest.param(Subset(Subset(BASE, [0, 2]), [0, 1]), id="subset-of-a-subset"),
    pytest.param(ConcatDataset([BASE, BASE]), id="twice"),
    pytest.param(ConcatDataset([BASE]), id="once"),
    pytest.param(ConcatDataset([ConcatDataset([BASE]), BASE]), id="once-and-once"),
    pytest.param(ConcatDataset([ConcatDataset([BASE, BASE])]), id="twice-in-one"),
    pytest.param(HuggingFace("one"), id="hugging-face"),
    pytest.param(HuggingFace("two"), id="another-hugging-face"),
    pytest.param([torch.ones(2), torch.zeros(2)], id="list-of-tensors"),
    pytest.param([torch.zeros(2), torch.ones(2)], id="list-in-another-order"),
    pytest.param([numpy.ones(2), numpy.zeros(2)], id="list-of-arrays"),
    pytest.param([numpy.ones(2, "f4"), numpy.zeros(2, "f4")], id="list-of-other-arrays"),
    pytest.param([(torch.ones(2), 3), (torch.zeros(2), 4)], id="list-of-pairs"),
    pytest.param(torch.ones(4), id="tensor"),
]


def test_different_data_have_different_names():
    named = {case.id: data_fingerprint(case.values[0]) for case in DIFFERENT}
    assert [name for name, found in named.items() if found is None] == []
    assert len(set(named.values())) == len(DIFFERENT)
    assert all(re.fullmatch("[0-9a-f]{32}", found) for found in named.values())


@pytest.mark.parametrize("dataset", DIFFERENT)
def test_the_name_is_the_same_again(dataset):
    assert data_fingerprint(dataset) == data_fingerprint(dataset)


def test_the_name_holds_in_another_process():
    script = (
        "import torch, numpy\n"
        "from torch.utils.data import TensorDataset, Subset\n"
        "from frostline.replay.data_identity import data_fingerprint\n"
        "base = TensorDataset(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 2]))\n"
        "print(data_fingerprint(Subset(base, [0, 2])))\n"
        "print(data_fingerprint([{'a', 'b', 'c'}, numpy.dtype('f4'), torch.nn.ReLU(), print]))\n"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert said[0][0] == data_fingerprint(Subset(BASE, [0, 2]))
    assert len(said[0][1]) == 32


def test_a_folder_is_named_by_its_files_and_attributes(folder):
    seen = [data_fingerprint(Folder(folder))]
    assert data_fingerprint(Folder(folder)) == seen[0]
    for transform in (Resize(96), Resize(224), Crop(96), [Resize(96), Crop(96)]):
        seen.append(data_fingerprint(Folder(folder, transform)))
    (folder / "b.jpg").write_bytes(b"123456")
    os.utime(folder / "b.jpg", ns=(10**18, 10**18))
    seen.append(data_fingerprint(Folder(folder)))
    os.utime(folder / "b.jpg", ns=(10**18, 10**18 + 1))
    seen.append(data_fingerprint(Folder(folder)))
    (folder / "c.jpg").write_bytes(b"12345")
    seen.append(data_fingerprint(Folder(folder)))
    assert None not in seen
    assert len(set(seen)) == 8


def test_a_folder_with_a_file_gone_has_no_name(folder):
    dataset = Folder(folder)
    (folder / "a.jpg").unlink()
    assert data_fingerprint(dataset) is None


def test_the_code_of_a_transform_counts(folder, monkeypatch):
    code = folder.parent / "own_transforms.py"
    monkeypatch.syspath_prepend(str(folder.parent))

    def named(text: str) -> str | None:
        code.write_text(text)
        sys.modules.pop("own_transforms", None)
        from frostline.replay import data_identity_state

        data_identity_state._file.cache_clear()
        module: Any = __import__("own_transforms")
        return data_fingerprint(Folder(folder, module.Own()))

    before = named("class Own:\n    factor = 2\n")
    assert before is not None
    assert named("class Own:\n    factor = 3\n") != before


@pytest.mark.parametrize(
    "dataset",
    [
        pytest.param(OwnTensors(torch.ones(2)), id="subclass-with-its-own-getitem"),
        pytest.param(Subset(OwnTensors(torch.ones(2)), [0]), id="subset-of-something-unknown"),
        pytest.param(ConcatDataset([BASE, OwnTensors(torch.ones(2))]), id="concat-with-unknown"),
        pytest.param(ForwardsAll(), id="a-wrapper-that-forwards-attributes"),
        pytest.param(SimpleNamespace(samples=[]), id="no-files"),
        pytest.param(SimpleNamespace(samples=[(3, 4)]), id="samples-that-are-no-files"),
        pytest.param(SimpleNamespace(samples=torch.ones(2)), id="samples-of-another-kind"),
        pytest.param([lambda: 3], id="list-of-functions"),
        pytest.param("text", id="text"),
        pytest.param(None, id="nothing"),
    ],
)
def test_anything_else_has_no_name(dataset):
    assert data_fingerprint(dataset) is None


def test_where_a_text_ends_counts():
    fed = [bytearray(), bytearray()]
    for texts, digest in zip((["ab", "c"], ["a", "bc"]), fed, strict=True):
        for text in texts:
            feed_text(text, digest.extend)
    assert fed[0] != fed[1]


def state_of(value: Any) -> bytes:
    fed = bytearray()
    feed_state(value, fed.extend)
    return bytes(fed)


ITSELF: list[Any] = [1]
ITSELF.append(ITSELF)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        pytest.param(lambda: "a", b"a", id="text-and-bytes"),
        pytest.param(lambda: 1, True, id="number-and-flag"),
        pytest.param(lambda: 0.0, -0.0, id="signed-zero"),
        pytest.param(lambda: ["ab", "c"], ["a", "bc"], id="where-texts-end"),
        pytest.param(lambda: [1], (1,), id="list-and-tuple"),
        pytest.param(lambda: [[Resize(1)], []], [[], [Resize(1)]], id="where-lists-end"),
        pytest.param(lambda: {"a": torch.ones(1)}, {"b": torch.ones(1)}, id="keys"),
        pytest.param(lambda: OrderedDict(a=1), OrderedDict(a=2), id="ordered"),
        pytest.param(lambda: deque([1, 2]), deque([1, 3]), id="deque"),
        pytest.param(lambda: {"x", "y"}, {"x", "z"}, id="set"),
        pytest.param(lambda: re.compile("a"), re.compile("b"), id="pattern"),
        pytest.param(lambda: partial(int, base=2), partial(int, base=3), id="partial"),
        pytest.param(lambda: Slotted(1), Slotted(2), id="slots"),
        pytest.param(lambda: Colour.RED, Colour.GREY, id="enum"),
        pytest.param(lambda: torch.nn.Dropout(0.1), torch.nn.Dropout(0.2), id="module"),
        pytest.param(lambda: torch.nn.Dropout, torch.nn.Dropout1d, id="class"),
        pytest.param(lambda: numpy.zeros((2, 1)), numpy.zeros((1, 2)), id="shape"),
        pytest.param(lambda: Path("a"), Path("b"), id="path"),
        pytest.param(lambda: ITSELF, [1, [1]], id="holds-itself"),
    ],
)  # fmt: skip
def test_state(make, other):
    assert state_of(make()) == state_of(make())
    assert state_of(make()) != state_of(other)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(lambda: 1, id="lambda"),
        pytest.param(Resize(1).__init__, id="method"),
        pytest.param(test_state.__class__(test_state.__code__, {}), id="copied-function"),
        pytest.param((each for each in "ab"), id="generator"),
        pytest.param(torch.Generator().__class__.__new__, id="method-of-C"),
        pytest.param(sys.stdout.buffer if hasattr(sys.stdout, "buffer") else sys, id="file"),
        pytest.param(numpy.array([object()]), id="array-of-objects"),
        pytest.param(type("Made", (), {})(), id="class-made-inside"),
    ],
)
def test_no_state(value):
    with pytest.raises(Unidentified):
        state_of(value)
