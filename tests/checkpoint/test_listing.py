from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

import frostline as fl
from frostline.checkpoint.listing import is_checkpoint, read_listing, skeleton
from frostline.checkpoint.stored import StoredTensor
from frostline.errors import CheckpointError


def tensors(**dtypes: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.zeros(2, 3, dtype=dtype) for name, dtype in dtypes.items()}


def tied() -> nn.Module:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 2), "head": nn.Linear(2, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    return model


@pytest.mark.parametrize(
    ("dtype", "name", "nbytes"),
    [
        pytest.param(torch.float32, "float32", 24, id="float32"),
        pytest.param(torch.float64, "float64", 48, id="float64"),
        pytest.param(torch.float16, "float16", 12, id="float16"),
        pytest.param(torch.bfloat16, "bfloat16", 12, id="bfloat16"),
        pytest.param(torch.float8_e4m3fn, "float8_e4m3fn", 6, id="float8"),
        pytest.param(torch.complex64, "complex64", 48, id="complex64"),
        pytest.param(torch.int64, "int64", 48, id="int64"),
        pytest.param(torch.uint8, "uint8", 6, id="uint8"),
        pytest.param(torch.bool, "bool", 6, id="bool"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_every_dtype_in_either_format(
    tmp_path: Path, suffix: str, dtype: torch.dtype, name: str, nbytes: int
) -> None:
    path = tmp_path / f"net.{suffix}"
    content = tensors(w=dtype)
    save_file(content, path) if suffix == "safetensors" else torch.save(content, path)
    assert read_listing(path).tensors == (
        StoredTensor(name="w", shape=(2, 3), dtype=name, nbytes=nbytes),
    )


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_scalars_and_empty_tensors(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net.{suffix}"
    content = {"a": torch.tensor(1.0), "b": torch.zeros(0, 3), "c": torch.zeros(0, 3)}
    save_file(content, path) if suffix == "safetensors" else torch.save(content, path)
    listed = read_listing(path).tensors
    assert [(t.shape, t.elements, t.nbytes, t.same_as) for t in listed] == [
        ((), 1, 4, None),
        ((0, 3), 0, 0, None),
        ((0, 3), 0, 0, None),
    ]


def test_ties_of_a_torch_file(tmp_path: Path) -> None:
    torch.save(tied().state_dict(), tmp_path / "net.pt")
    assert [(t.name, t.same_as) for t in read_listing(tmp_path / "net.pt").tensors] == [
        ("embed.weight", None),
        ("head.weight", "embed.weight"),
    ]


def test_ties_of_a_safetensors_file_are_in_its_metadata(tmp_path: Path) -> None:
    save_model(tied(), str(tmp_path / "net.safetensors"), metadata={"format": "pt"})
    listed = read_listing(tmp_path / "net.safetensors").tensors
    assert [(t.name, t.shape, t.nbytes, t.same_as) for t in listed] == [
        ("embed.weight", (5, 2), 40, None),
        ("head.weight", (5, 2), 40, "embed.weight"),
    ]


def test_equal_halves_of_one_memory_are_no_tie(tmp_path: Path) -> None:
    whole = torch.zeros(4)
    torch.save({"a": whole[:2], "b": whole[2:]}, tmp_path / "net.pt")
    assert [t.same_as for t in read_listing(tmp_path / "net.pt").tensors] == [None, None]


def test_a_torch_file_keeps_the_order_of_the_model(tmp_path: Path) -> None:
    torch.save(tensors(z=torch.float32, a=torch.float32), tmp_path / "net.pt")
    assert [t.name for t in read_listing(tmp_path / "net.pt").tensors] == ["z", "a"]


def test_other_files_are_sorted_with_numbers_as_numbers(tmp_path: Path) -> None:
    names = ["layer.10.w", "layer.2.w", "layer.2.b", "embed"]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "net.safetensors")
    assert [t.name for t in read_listing(tmp_path / "net.safetensors").tensors] == [
        "embed",
        "layer.2.b",
        "layer.2.w",
        "layer.10.w",
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param(["module.a.w", "module.b"], ["a.w", "b"], id="DataParallel"),
        pytest.param(["_orig_mod.a.w"], ["a.w"], id="torch.compile"),
        pytest.param(["module.w", "b"], ["module.w", "b"], id="a module called module"),
        pytest.param(["_orig_mod.w", "w"], ["_orig_mod.w", "w"], id="names that would collide"),
    ],
)
def test_wrapper_prefixes(tmp_path: Path, keys: list[str], expected: list[str]) -> None:
    torch.save({key: torch.zeros(1) for key in keys}, tmp_path / "net.pt")
    assert [t.name for t in read_listing(tmp_path / "net.pt").tensors] == expected


def test_a_tie_follows_the_canonical_name(tmp_path: Path) -> None:
    shared = torch.zeros(2)
    torch.save({"_orig_mod.a": shared, "_orig_mod.b": shared}, tmp_path / "net.pt")
    assert [(t.name, t.same_as) for t in read_listing(tmp_path / "net.pt").tensors] == [
        ("a", None),
        ("b", "a"),
    ]


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: state, id="bare"),
        pytest.param(lambda state: {"state_dict": state, "epoch": 3}, id="state_dict"),
        pytest.param(lambda state: {"step": torch.tensor(3), "model": state}, id="model"),
        pytest.param(lambda state: {"model": {"state_dict": state}}, id="two deep"),
        pytest.param(lambda state: state | {"_extra_state": None, "n": 1}, id="other entries"),
    ],
)
def test_nested_state_dicts_are_found(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object]
) -> None:
    torch.save(wrap(tensors(w=torch.float32)), tmp_path / "net.pt")
    assert [t.name for t in read_listing(tmp_path / "net.pt").tensors] == ["w"]


def test_the_format_before_torch_1_6(tmp_path: Path) -> None:
    shared = torch.zeros(2)
    path = tmp_path / "net.pth"
    torch.save({"a": shared, "b": shared}, path, _use_new_zipfile_serialization=False)
    assert [(t.name, t.same_as) for t in read_listing(path).tensors] == [("a", None), ("b", "a")]


def write_shards(folder: Path) -> None:
    save_file({"a.w": torch.zeros(2)}, folder / "model-1.safetensors")
    save_file({"b.w": torch.zeros(3)}, folder / "model-2.safetensors")
    weight_map = {"b.w": "model-2.safetensors", "a.w": "model-1.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("name", ["", "model.safetensors.index.json"], ids=["folder", "index"])
def test_shards_are_listed_together(tmp_path: Path, name: str) -> None:
    write_shards(tmp_path)
    listing = read_listing(tmp_path / name)
    assert [(t.name, t.shape) for t in listing.tensors] == [("a.w", (2,)), ("b.w", (3,))]
    assert [file.name for file in listing.files] == ["model-1.safetensors", "model-2.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "adapter.safetensors"])
def test_a_folder_with_one_file(tmp_path: Path, name: str) -> None:
    save_file(tensors(w=torch.float32), tmp_path / name)
    assert read_listing(tmp_path).files == (tmp_path / name,)


def test_no_content_is_read(tmp_path: Path) -> None:
    # Two sparse files of 1 TiB each: reading them, or room for them, is out of the question.
    header = {"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}
    text = json.dumps(header).encode()
    with (tmp_path / "net.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2**40)
    assert read_listing(tmp_path / "net.safetensors").tensors[0].nbytes == 2**40


class Net(nn.Module):
    """Something that would have to be unpickled."""


def cut(path: Path, *, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def write_bad(path: Path, how: str) -> None:
    """Make ``path`` a file of the kind that ``how`` says."""
    if how == "object":
        torch.save(Net(), path)
    elif how == "namespace":
        torch.save({"args": argparse.Namespace(lr=1), **tensors(w=torch.float32)}, path)
    elif how == "script":
        # What tells TorchScript's archives from others; making a real one is deprecated.
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/constants.pkl", b"")
            archive.writestr("net/version", b"3\n")
    elif how == "pickle":
        path.write_bytes(pickle.dumps({"w": 1}))
    elif how == "tensor":
        torch.save(torch.zeros(2), path)
    elif how == "no tensors":
        torch.save({"lr": 1, "names": ["a"]}, path)
    elif how == "other keys":
        torch.save({"encoder": tensors(w=torch.float32)}, path)
    elif how == "nothing":
        torch.save({}, path)
    elif how == "empty":
        path.touch()
    elif how == "garbage":
        path.write_bytes(b"not a checkpoint at all " * 9)
    elif how == "cut":
        save = save_file if path.suffix == ".safetensors" else torch.save
        save(tensors(w=torch.float32, v=torch.float32), path)
        cut(path, keep=0.8)


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        pytest.param(
            "net.pt",
            "object",
            r"net\.pt holds more than tensors: it would have to unpickle .+\.Net, which can run"
            r" code, so it is left alone\. Save the weights alone:"
            r" torch\.save\(model\.state_dict\(\), 'weights\.pt'\)",
            id="a pickled model",
        ),
        pytest.param(
            "net.pt",
            "namespace",
            r"net\.pt holds more than tensors: it would have to unpickle argparse\.Namespace, .+",
            id="weights beside an object",
        ),
        pytest.param(
            "net.pt",
            "script",
            r"net\.pt is a TorchScript program, not a checkpoint\. Save its weights:"
            r" torch\.save\(torch\.jit\.load\(path\)\.state_dict\(\), 'weights\.pt'\)",
            id="TorchScript",
        ),
        *(
            pytest.param(
                "net.pt",
                how,
                r"net\.pt is damaged or not written by torch\.save: fetch or save it again",
                id=f"torch, {how}",
            )
            for how in ("pickle", "empty", "garbage", "cut")
        ),
        *(
            pytest.param(
                "net.safetensors",
                how,
                r"net\.safetensors is damaged or no safetensors file \(.+\): fetch or save it"
                r" again",
                id=f"safetensors, {how}",
            )
            for how in ("empty", "garbage", "cut")
        ),
        pytest.param(
            "net.pt",
            "tensor",
            r"net\.pt holds a Tensor, not a state dict: expected a mapping from names to tensors",
            id="a tensor",
        ),
        pytest.param(
            "net.pt",
            "no tensors",
            r"net\.pt holds no state dict: no tensors at the top nor under state_dict,"
            r" model_state_dict, model, module, net, weights; it has: lr, names",
            id="no tensors",
        ),
        pytest.param(
            "net.pt", "other keys", r"net\.pt holds no state dict: .+ it has: encoder", id="unknown"
        ),
        pytest.param(
            "net.pt", "nothing", r"net\.pt holds no state dict: .+ it has: nothing", id="nothing"
        ),
        pytest.param("net.pt", "missing", r"there is no file .*net\.pt", id="missing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, name: str, how: str, message: str
) -> None:
    write_bad(tmp_path / name, how)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(CheckpointError, match=rf"^({re.escape(str(tmp_path))}/)?{message}$"):
            read_listing(tmp_path / name)
    assert warned == []


def test_unpickling_never_runs_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    for name, zipped in (("new.pt", True), ("old.pt", False)):
        torch.save({"w": Attack()}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="would have to unpickle"):
            read_listing(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param({}, "holds no checkpoint: expected a .safetensors file or one of", id="empty"),
        pytest.param(
            {"a.safetensors": "", "b.safetensors": ""},
            "holds 2 .safetensors files (a.safetensors, b.safetensors) and no index: name one",
            id="several",
        ),
        pytest.param(
            {"model.safetensors.index.json": "{}"}, "is no index of a checkpoint", id="no map"
        ),
        pytest.param(
            {"model.safetensors.index.json": "\x00"}, "is no index of a checkpoint", id="no JSON"
        ),
        pytest.param(
            {"model.safetensors.index.json": '{"weight_map": {"w": "model-1.safetensors"}}'},
            "names 1 files, of which model-1.safetensors is not beside it: fetch the checkpoint",
            id="a shard is missing",
        ),
    ],
)
def test_folders_that_are_no_checkpoint(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_listing(tmp_path)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("net.safetensors", True, id="safetensors"),
        pytest.param("runs/NET.PT", True, id="capitals"),
        pytest.param("model.safetensors.index.json", True, id="index"),
        pytest.param("folder", True, id="folder"),
        pytest.param("model.py:build", False, id="file of code"),
        pytest.param("package.pt:build", False, id="module called pt"),
        pytest.param("digits-cnn", False, id="built-in"),
        pytest.param("", False, id="nothing"),
    ],
)
def test_what_is_meant_as_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: bool
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_checkpoint(source) is expected


def test_a_skeleton_has_the_names_shapes_and_ties(tmp_path: Path) -> None:
    model = nn.ModuleDict({"body": nn.BatchNorm1d(3), "tied": tied()})
    # Names that an nn.Module refuses when they are set as attributes.
    state = {**model.state_dict(), "type.forward": torch.zeros(1), "training.x": torch.zeros(1)}
    torch.save(state, tmp_path / "net.pt")
    copy = skeleton(read_listing(tmp_path / "net.pt"))
    assert {name: tuple(p.shape) for name, p in copy.named_parameters()} == {
        "body.weight": (3,),
        "body.bias": (3,),
        "tied.embed.weight": (5, 2),
        "type.forward": (1,),
        "training.x": (1,),
    }
    assert [name for name, _ in copy.named_buffers()] == [
        "body.running_mean",
        "body.running_var",
        "body.num_batches_tracked",
    ]
    assert all(p.is_meta for p in copy.parameters())
    assert fl.select(copy, "head").names == ("tied.embed.weight",)
