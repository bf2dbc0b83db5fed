from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from frostline.finetune import pretrain
from frostline.finetune.data import PRETRAINING_DIGITS, load_digits_task
from frostline.finetune.pretrain import Recipe, cache_folder, cache_key, pretrained_digits_cnn

QUICK = Recipe(epochs=1)
ONCE = ["pretraining digits-cnn on the digits 0-4 (once; it is cached)"]


def make(folder: Path, recipe: Recipe = QUICK):
    said: list[str] = []
    return pretrained_digits_cnn(said.append, recipe=recipe, folder=folder), said


def weights(model):
    return torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_the_network_knows_the_first_digits():
    model = pretrained_digits_cnn(lambda text: None)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    held_out = load_digits_task(PRETRAINING_DIGITS, seed=Recipe().seed).held_out
    predicted = model(held_out.inputs).argmax(dim=1)
    assert (predicted == held_out.targets).float().mean() > 0.95


def test_the_second_time_it_comes_from_the_cache(tmp_path, monkeypatch):
    first, said = make(tmp_path / "new" / "folder")
    assert said == ONCE
    monkeypatch.setattr(pretrain, "_train", None)
    second, said = make(tmp_path / "new" / "folder")
    assert said == []
    assert torch.equal(weights(first), weights(second))
    assert not second.training


def test_pretraining_leaves_random_state_and_threads_alone(tmp_path):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    make(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def rename_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    tensors["extra"] = tensors.pop("head.bias")
    save_file(tensors, file)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.write_bytes(b""), id="empty"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:-1]), id="truncated"),
        pytest.param(lambda file: file.write_bytes(b"\xff" * 100), id="noise"),
        pytest.param(flip_a_bit, id="one-bit"),
        pytest.param(rename_a_tensor, id="other-tensors"),
        pytest.param(lambda file: (file.unlink(), file.mkdir()), id="a-folder"),
    ],
)
def test_a_damaged_cache_is_made_anew_with_a_note(tmp_path, damage):
    good, _ = make(tmp_path)
    damage(only_file(tmp_path))
    again, said = make(tmp_path)
    assert torch.equal(weights(again), weights(good))
    assert "can't be used" in said[0]
    assert said[0].endswith("pretraining again")
    if only_file(tmp_path).is_file():
        assert make(tmp_path)[1] == []


def test_a_cache_that_cannot_be_written_costs_one_note(tmp_path):
    (tmp_path / "file").touch()
    model, said = make(tmp_path / "file" / "below")
    assert len(said) == 2
    assert said[0] == ONCE[0]
    assert said[1].startswith("the pretrained network is not cached: cannot make the folder")
    assert not model.training
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert "is not cached" in make(tmp_path)[1][-1]
    finally:
        tmp_path.chmod(0o700)


def test_without_a_home_it_trains_without_a_cache(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pretrain, "cache_folder", homeless)
    said: list[str] = []
    pretrained_digits_cnn(said.append, recipe=QUICK)
    assert said == ["no cache folder (set FROSTLINE_CACHE to have one): pretraining each time"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param({"FROSTLINE_CACHE": "/a/b"}, "/a/b", id="own"),
        pytest.param({"FROSTLINE_CACHE": "/a", "XDG_CACHE_HOME": "/x"}, "/a", id="own-first"),
        pytest.param({"FROSTLINE_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/frostline", id="xdg"),
        pytest.param({"XDG_CACHE_HOME": "x", "HOME": "/h"}, "/h/.cache/frostline", id="relative"),
        pytest.param({"HOME": "/h"}, "/h/.cache/frostline", id="home"),
        pytest.param({"FROSTLINE_CACHE": "~/c", "HOME": "/h"}, "/h/c", id="tilde"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, expected):
    for name in ("FROSTLINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_the_key_changes_with_what_decides_the_weights(monkeypatch):
    keys = {cache_key(recipe) for recipe in (QUICK, Recipe(), Recipe(seed=1), Recipe(lr=1e-3))}
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    keys.add(cache_key(QUICK))
    monkeypatch.setattr(pretrain, "scans_version", lambda: "9.9.9")
    keys.add(cache_key(QUICK))
    monkeypatch.setattr(pretrain.networks, "__file__", __file__)
    keys.add(cache_key(QUICK))
    assert len(keys) == 7
    assert cache_key(QUICK) in keys
