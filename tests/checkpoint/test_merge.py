from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deltas import HEAD, contents, same, tuned
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from torch import nn
from zoo import Net, TiedLm

import frostline as fl
from frostline.checkpoint import merge_delta, save_trained, verify_checkpoints
from frostline.errors import CheckpointError, OutputError


def folder_state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Net, Net, Path]:
    """A base, the tuned model, and a folder with both as files and the delta."""
    base, model = tuned(["layers.2", "head"])
    save_file(base.state_dict(), tmp_path / "base.safetensors", {"format": "pt", "by": "me"})
    torch.save(base.state_dict(), tmp_path / "base.pt")
    save_trained(model, tmp_path / "delta.safetensors")
    return base, model, tmp_path


@pytest.mark.parametrize("name", ["base.safetensors", "base.pt"])
def test_a_file_gives_a_file(files: tuple[Net, Net, Path], name: str) -> None:
    _, model, folder = files
    before = (folder / name).read_bytes()
    merged = merge_delta(folder / name, folder / "delta.safetensors", folder / "out.safetensors")
    assert same(load_file(folder / "out.safetensors"), contents(model))
    assert (folder / name).read_bytes() == before
    assert merged.files == (folder / "out.safetensors",)
    assert merged.added == ()
    assert {"head.weight", "layers.2.norm.running_mean"} <= set(merged.replaced)
    assert merged.nbytes == sum(t.nbytes for t in model.state_dict().values())
    assert verify_checkpoints(folder / "delta.safetensors", merged.path).differences == ()


def test_what_a_file_says_of_itself_is_kept(files: tuple[Net, Net, Path]) -> None:
    _, _, folder = files
    merge_delta(
        folder / "base.safetensors", folder / "delta.safetensors", folder / "out.safetensors"
    )
    with safe_open(folder / "out.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "by": "me"}


def test_a_wrapped_base_keeps_its_names(tmp_path: Path) -> None:
    base, model = tuned()
    torch.save({f"module.{k}": v for k, v in base.state_dict().items()}, tmp_path / "ddp.pt")
    save_trained(model, tmp_path / "d.safetensors")
    merge_delta(tmp_path / "ddp.pt", tmp_path / "d.safetensors", tmp_path / "o.safetensors")
    wanted = {f"module.{name}": tensor for name, tensor in contents(model).items()}
    assert same(load_file(tmp_path / "o.safetensors"), wanted)


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(lambda m, p: save_model(m, str(p)), id="save_model"),
        pytest.param(lambda m, p: torch.save(m.state_dict(), p.with_suffix(".pt")), id="torch"),
        pytest.param(
            lambda m, p: save_file({"transformer.h.weight": m.transformer["h"].weight,
                                    "transformer.h.bias": m.transformer["h"].bias,
                                    "lm_head.weight": m.lm_head.weight}, p),
            id="under the other name",
        ),
    ],
)  # fmt: skip
def test_tied_weights(tmp_path: Path, save: Callable[[nn.Module, Path], object]) -> None:
    base = TiedLm()
    save(base, tmp_path / "base.safetensors")
    (name,) = (p.name for p in tmp_path.iterdir())
    model = copy.deepcopy(base)
    fl.freeze(model, all_but="lm_head")
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    save_trained(model, tmp_path / "d.safetensors")
    out = merge_delta(tmp_path / name, tmp_path / "d.safetensors", tmp_path / "o.safetensors")
    assert out.added == ()
    found = load_file(out.path)
    tied = [t for n, t in found.items() if n in ("lm_head.weight", "transformer.wte.weight")]
    assert tied
    assert all(torch.equal(t, model.lm_head.weight) for t in tied)


def test_a_new_head_and_one_of_another_size(tmp_path: Path) -> None:
    base = Net()
    state = contents(base)
    save_file({**state, "old.weight": torch.ones(2)}, tmp_path / "base.safetensors")
    model = copy.deepcopy(base)
    model.head = nn.Linear(8, 5)
    model.extra = nn.Linear(2, 2)
    fl.freeze(model, all_but=["head", "extra"])
    save_trained(model, tmp_path / "d.safetensors")
    merged = merge_delta(
        tmp_path / "base.safetensors", tmp_path / "d.safetensors", tmp_path / "o.safetensors"
    )
    assert set(merged.added) == {"extra.weight", "extra.bias", *HEAD}
    found = load_file(merged.path)
    assert torch.equal(found.pop("old.weight"), torch.ones(2))
    assert same(found, contents(model))


def test_a_narrower_base(tmp_path: Path) -> None:
    base = Net().bfloat16()
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    model = copy.deepcopy(base).float()
    fl.freeze(model, all_but="head")
    save_trained(model, tmp_path / "d.safetensors")
    merge_delta(
        tmp_path / "base.safetensors", tmp_path / "d.safetensors", tmp_path / "o.safetensors"
    )
    found = load_file(tmp_path / "o.safetensors")
    assert (found["stem.weight"].dtype, found["head.weight"].dtype) == (
        torch.bfloat16,
        torch.float32,
    )
    model.double()
    again = Net().double()
    again.load_state_dict(found)
    assert same(contents(again), contents(model))


def shards(base: nn.Module, folder: Path, *, suffix: str = ".safetensors") -> None:
    """Three files, an index and what lies beside it."""
    folder.mkdir()
    state, weight_map = base.state_dict(), {}
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    for number in (1, 2, 3):
        part = {n: t.clone() for i, (n, t) in enumerate(state.items()) if i % 3 == number - 1}
        name = f"{stem}-0000{number}-of-00003{suffix}"
        save = save_file if suffix == ".safetensors" else torch.save
        save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    (folder / "vocab").mkdir()
    (folder / "vocab" / "words.txt").write_text("a b c")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "secret").write_text("x")
    (folder / "tf_model.h5").write_bytes(b"old weights")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_folder_keeps_its_shards_and_what_lies_beside(tmp_path: Path, suffix: str) -> None:
    base, model = tuned()
    shards(base, tmp_path / "base", suffix=suffix)
    save_trained(model, tmp_path / "d.safetensors")
    before = folder_state(tmp_path / "base")
    merged = merge_delta(tmp_path / "base", tmp_path / "d.safetensors", tmp_path / "out")
    assert folder_state(tmp_path / "base") == before
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert sorted(folder_state(tmp_path / "out")) == [
        "config.json", *names, "model.safetensors.index.json", "vocab/words.txt",
    ]  # fmt: skip
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(contents(model))
    assert index["metadata"]["total_size"] == merged.nbytes
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in contents(model).values())
    found = {}
    for name in names:
        held = load_file(tmp_path / "out" / name)
        assert all(index["weight_map"][key] == name for key in held)
        found |= held
    assert same(found, contents(model))


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "beside-the-delta"])
def test_the_configuration_of_the_tuned_model(tmp_path: Path, is_told: bool) -> None:
    base, model = tuned()
    shards(base, tmp_path / "base")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"labels": 3}')
    delta = tmp_path / "run" / "d.safetensors"
    save_trained(model, delta)
    config = tmp_path / "run" if is_told else None
    merged = merge_delta(tmp_path / "base", delta, tmp_path / "out", config=config)
    assert merged.config == tmp_path / "run"
    assert (tmp_path / "out" / "config.json").read_text() == '{"labels": 3}'
    assert not (tmp_path / "out" / "d.safetensors").exists()


def without_stem(base: Net) -> None:
    base.stem = nn.Identity()


def with_wider_stem(base: Net) -> None:
    base.stem = nn.Linear(8, 9)


def wrong_weights(base: Net) -> None:
    with torch.no_grad():
        base.layers[1].fc.weight[7, 7] += 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(wrong_weights, "layers.1.fc.weight differs from the one", id="weights"),
        pytest.param(without_stem, "has no stem.weight, stem.bias", id="less"),
        pytest.param(with_wider_stem, "stem.weight was float32 [8, 8] in", id="shape"),
        pytest.param(lambda base: base.double(), "is float64", id="wider"),
    ],
)
@pytest.mark.parametrize("form", ["file", "folder"])
def test_another_base_is_refused_and_nothing_is_left(
    tmp_path: Path, form: str, change: Callable[[Net], object], said: str
) -> None:
    base, model = tuned()
    save_trained(model, tmp_path / "d.safetensors")
    change(base)
    if form == "folder":
        shards(base, tmp_path / "base")
        where, out = tmp_path / "base", tmp_path / "out"
    else:
        where, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
        save_file(base.state_dict(), where)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(CheckpointError) as caught:
        merge_delta(where, tmp_path / "d.safetensors", out)
    assert said in str(caught.value)
    assert "Nothing was written" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_delta_is_no_base(files: tuple[Net, Net, Path]) -> None:
    _, _, folder = files
    delta = folder / "delta.safetensors"
    with pytest.raises(CheckpointError, match="is a delta: give the whole model"):
        merge_delta(delta, delta, folder / "o.safetensors")


class TestTarget:
    @pytest.mark.parametrize(
        ("base", "out", "said"),
        [
            pytest.param("base.safetensors", "base.safetensors", "it exists", id="the base"),
            pytest.param("base.safetensors", "delta.safetensors", "it exists", id="the delta"),
            pytest.param("base.safetensors", "out.pt", "is named *.safetensors", id="suffix"),
            pytest.param("base.pt", "no/o.safetensors", "No such file", id="no folder"),
            pytest.param("folder", "folder", "it exists", id="the folder"),
            pytest.param("folder", "folder/out", "it lies in the base", id="in the folder"),
            pytest.param("folder", "base.pt", "it exists", id="a file"),
            pytest.param("folder", "no/out", "No such file", id="no parent"),
        ],
    )
    def test_where_nothing_can_go(
        self, files: tuple[Net, Net, Path], base: str, out: str, said: str
    ) -> None:
        model, _, folder = files
        shards(model, folder / "folder")
        before = folder_state(folder)
        with pytest.raises(OutputError) as caught:
            merge_delta(folder / base, folder / "delta.safetensors", folder / out)
        assert said in str(caught.value)
        assert folder_state(folder) == before

    def test_an_empty_folder_is_filled(self, files: tuple[Net, Net, Path]) -> None:
        model, _, folder = files
        shards(model, folder / "folder")
        (folder / "out").mkdir()
        merge_delta(folder / "folder", folder / "delta.safetensors", folder / "out")
        assert (folder / "out" / "config.json").is_file()

    @pytest.mark.parametrize("form", ["base.safetensors", "folder"])
    def test_a_full_disk_leaves_nothing(
        self, files: tuple[Net, Net, Path], monkeypatch: pytest.MonkeyPatch, form: str
    ) -> None:
        model, _, folder = files
        shards(model, folder / "folder")
        before = folder_state(folder)
        calls: list[int] = []

        def full(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) == (2 if form == "folder" else 1):
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        out = "out" if form == "folder" else "out.safetensors"
        with pytest.raises(OutputError, match="No space left on device"):
            merge_delta(folder / form, folder / "delta.safetensors", folder / out)
        assert folder_state(folder) == before
        assert not (folder / out).exists()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_place(self, files: tuple[Net, Net, Path]) -> None:
        _, _, folder = files
        (folder / "locked").mkdir(mode=0o500)
        with pytest.raises(OutputError, match="Permission denied"):
            merge_delta(
                folder / "base.pt",
                folder / "delta.safetensors",
                folder / "locked" / "o.safetensors",
            )

    def test_a_read_only_base_is_enough(self, files: tuple[Net, Net, Path]) -> None:
        model, _, folder = files
        shards(model, folder / "folder")
        for path in (folder / "folder").rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        merge_delta(folder / "folder", folder / "delta.safetensors", folder / "out")
        mode = (folder / "out" / "config.json").stat().st_mode
        assert mode & 0o200
        shutil.rmtree(folder / "out")
