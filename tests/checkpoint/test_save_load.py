from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deltas import HEAD, NORM, contents, same, step, train, tuned
from safetensors import safe_open
from torch import nn
from zoo import Net, TiedLm

import frostline as fl
from frostline.checkpoint import fingerprints, load_trained, read_delta, save_trained
from frostline.errors import CheckpointError, OutputError, SelectorError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tuned.safetensors"


def test_only_what_trains_is_written_and_comes_back(path: Path) -> None:
    base, model = tuned()
    saved = save_trained(model, path)
    assert saved.names == HEAD
    assert saved.nbytes == 4 * (3 * 8 + 3)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(HEAD)
    loaded = load_trained(base, path)
    assert loaded == saved
    assert same(contents(base), contents(model))


def test_buffers_of_modules_that_train_go_along(path: Path) -> None:
    base, model = tuned(["layers.2", "head"])
    saved = save_trained(model, path)
    assert {f"layers.2.norm.{leaf}" for leaf in NORM} <= set(saved.names)
    assert not {f"layers.1.norm.{leaf}" for leaf in NORM} & set(saved.names)
    load_trained(base, path)
    assert same(contents(base), contents(model))


def test_batchnorm_frozen_by_hand_moves_and_is_saved(path: Path) -> None:
    base = Net()
    model = copy.deepcopy(base)
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    train(model)
    assert "layers.0.norm.running_mean" in save_trained(model, path).names
    load_trained(base, path)
    assert same(contents(base), contents(model))


def test_statistics_that_a_freeze_lets_go_are_saved(path: Path) -> None:
    base = Net()
    model = copy.deepcopy(base)
    fl.freeze(model, all_but="head", pin_eval=False, hold_statistics=False)
    train(model)
    save_trained(model, path)
    load_trained(base, path)
    assert same(contents(base), contents(model))


def test_a_buffer_that_no_checkpoint_holds_is_left_out(path: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("scratch", torch.zeros(3), persistent=False)
    assert save_trained(model, path).names == ("weight", "bias")


@pytest.mark.parametrize(
    "refreeze",
    [
        pytest.param(lambda model: fl.freeze(model, "layers.2"), id="frozen again"),
        pytest.param(lambda model: fl.freeze(model, all_but="stem"), id="by a plan"),
    ],
)
def test_what_was_thawed_and_frozen_again_is_saved(
    path: Path, refreeze: Callable[[nn.Module], object]
) -> None:
    _, model = tuned()
    fl.unfreeze(model, "layers.2")
    train(model)
    refreeze(model)
    names = save_trained(model, path).names
    assert "layers.2.fc.weight" in names
    assert "layers.1.fc.weight" not in names


def test_what_trained_after_an_undo_is_saved(path: Path) -> None:
    base = Net()
    model = copy.deepcopy(base)
    with fl.freeze(model, all_but="head"):
        train(model)
    train(model)
    fl.freeze(model, all_but="head")
    assert "stem.weight" in save_trained(model, path).names


def test_a_schedule_that_freezes_as_it_goes(path: Path) -> None:
    base = Net()
    model = copy.deepcopy(base)
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1, declare_all=True)
    phases = [
        {"step": 0, "train": ["layers.2"]},
        {"step": 1, "train": ["layers.1"]},
        {"step": 2, "train": ["head"]},
    ]
    freezer = fl.Freezer(model, optimizer, schedule=fl.schedules.Explicit(phases))
    for _ in range(4):
        step(model, optimizer)
        freezer.step()
    names = save_trained(model, path).names
    assert {"layers.1.fc.weight", "layers.2.fc.weight", "head.weight"} <= set(names)
    assert "stem.weight" not in names
    assert "layers.0.fc.weight" not in names


@pytest.mark.parametrize(
    ("include", "more"),
    [
        pytest.param("stem", {"stem.weight", "stem.bias"}, id="a name"),
        pytest.param(["stem.bias", fl.glob("layers.0.fc.bias")],
                     {"stem.bias", "layers.0.fc.bias"}, id="several"),
    ],
)  # fmt: skip
def test_include(path: Path, include: object, more: set[str]) -> None:
    _, model = tuned()
    assert set(save_trained(model, path, include=include).names) == {*HEAD, *more}  # type: ignore[arg-type]


def test_what_differs_from_a_base_is_saved_whatever_trains_now(path: Path) -> None:
    base = Net()
    before = fingerprints(base)
    model = copy.deepcopy(base)
    with torch.no_grad():
        model.stem.bias.add_(1)
    model.requires_grad_(False)
    assert save_trained(model, path, base=before).names == ("stem.bias",)
    load_trained(base, path)
    assert same(contents(base), contents(model))


def test_nothing_trained_is_an_error(path: Path) -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"nothing of Linear was trained.+include='head'"):
        save_trained(model, path)
    assert save_trained(model, path, base=fingerprints(model)).names == ()
    assert load_trained(model, path).nbytes == 0


class TestPlan:
    def test_the_plan_given_is_kept(self, path: Path) -> None:
        _, model = tuned()
        plan = fl.Plan.all_but("head")
        assert save_trained(model, path, plan=plan).plan == plan
        assert read_delta(path).plan == plan

    def test_without_one_what_is_saved_was_to_train(self, path: Path) -> None:
        base, model = tuned()
        plan = save_trained(model, path).plan
        fl.freeze(base, plan)
        assert [n for n, p in base.named_parameters() if p.requires_grad] == list(HEAD)

    def test_one_of_functions_is_written_by_name(self, path: Path) -> None:
        base, model = tuned()
        plan = fl.Plan.freezing(fl.where(lambda name, _: not name.startswith("head")))
        fl.freeze(base, save_trained(model, path, plan=plan).plan)
        assert [n for n, p in base.named_parameters() if p.requires_grad] == list(HEAD)

    def test_one_that_fits_another_model_is_refused(self, path: Path) -> None:
        _, model = tuned()
        with pytest.raises(SelectorError, match="'classifier' matches none"):
            save_trained(model, path, plan=fl.Plan.all_but("classifier"))
        assert not path.exists()


class TestTies:
    def test_a_tied_tensor_is_one(self, path: Path) -> None:
        base = TiedLm()
        model = copy.deepcopy(base)
        fl.freeze(model, all_but="lm_head")
        with torch.no_grad():
            model.lm_head.weight.add_(1)
        assert save_trained(model, path).names == ("transformer.wte.weight",)
        load_trained(base, path)
        assert base.lm_head.weight is base.transformer["wte"].weight
        assert torch.equal(base.lm_head.weight, model.lm_head.weight)

    def test_a_model_that_is_tied_otherwise_is_refused(self, path: Path) -> None:
        model = TiedLm()
        save_trained(model, path)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        with pytest.raises(CheckpointError) as caught:
            load_trained(model, path)
        assert (
            "transformer.wte.weight: saved as tied with lm_head.weight, is a tensor of its own"
        ) in str(caught.value)

    def test_parameters_on_one_memory_are_saved_together(self, path: Path) -> None:
        model = nn.Module()
        model.a = nn.Parameter(torch.arange(6.0))
        model.b = nn.Parameter(model.a.detach()[2:5], requires_grad=False)
        assert save_trained(model, path).names == ("a", "b")


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.float8_e4m3fn]
)
def test_every_dtype_bit_for_bit(path: Path, dtype: torch.dtype) -> None:
    content = torch.randint(0, 255, (5, 16), dtype=torch.uint8).view(dtype)
    model, base = nn.Module(), nn.Module()
    model.w = nn.Parameter(content)
    base.w = nn.Parameter(torch.zeros_like(content))
    save_trained(model, path)
    load_trained(base, path)
    assert fl.fingerprint(base.w) == fl.fingerprint(content)


@pytest.mark.parametrize(
    "lay",
    [
        pytest.param(lambda w: w.t(), id="transposed"),
        pytest.param(lambda w: w[:, ::2], id="strided"),
        pytest.param(lambda w: w[:0], id="empty"),
        pytest.param(lambda w: w.sum(), id="scalar"),
        pytest.param(lambda w: w.view(2, 2, 2, 3).to(memory_format=torch.channels_last), id="nhwc"),
    ],
)
def test_every_layout(path: Path, lay: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = nn.Module()
    model.w = nn.Parameter(lay(torch.randn(4, 6)).detach())
    base = copy.deepcopy(model)
    strides = base.w.stride()
    with torch.no_grad():
        base.w.zero_()
    save_trained(model, path)
    load_trained(base, path)
    assert torch.equal(base.w, model.w)
    assert base.w.stride() == strides


def wrapped_in_ddp(model: nn.Module) -> nn.Module:
    return nn.DataParallel(model)  # the same prefix as DDP, and no process group


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize(
    "wrap", [pytest.param(wrapped_in_ddp, id="module."), pytest.param(compiled, id="_orig_mod.")]
)
@pytest.mark.parametrize("side", ["saved", "loaded"])
def test_wrapper_prefixes_are_invisible(
    path: Path, wrap: Callable[[nn.Module], nn.Module], side: str
) -> None:
    base, model = tuned()
    save_trained(wrap(model) if side == "saved" else model, path)
    assert read_delta(path).names == HEAD
    load_trained(wrap(base) if side == "loaded" else base, path)
    assert same(contents(base), contents(model))


def test_an_optimizer_goes_on_with_the_loaded_parameters(path: Path) -> None:
    base, model = tuned()
    save_trained(model, path)
    fl.freeze(base, all_but="head")
    optimizer = train(base)
    before = [id(p) for p in base.parameters()]
    load_trained(base, path)
    assert [id(p) for p in base.parameters()] == before
    loaded = base.head.weight.detach().clone()
    step(base, optimizer)
    assert not torch.equal(base.head.weight, loaded)


def test_loading_twice_changes_nothing_even_when_frozen(path: Path) -> None:
    base, model = tuned()
    save_trained(model, path)
    load_trained(base, path)
    frozen = fl.freeze(base, "**", everything=True)
    load_trained(base, path)
    assert frozen.verify().ok


def test_an_expanded_buffer_is_refused_before_anything_is_written(path: Path) -> None:
    def build(fill: float) -> nn.Module:
        model = nn.Linear(2, 2)
        nn.init.constant_(model.weight, fill)
        model.register_buffer("scale", torch.tensor([fill]).expand(4))
        return model

    save_trained(build(1), path)
    other = build(2)
    with pytest.raises(CheckpointError, match=r"scale can't be filled in place"):
        load_trained(other, path)
    assert bool((other.weight == 2).all())


@pytest.mark.parametrize("which", ["trained", "frozen"])
def test_a_model_on_meta_is_refused(path: Path, which: str) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0 if which == "trained" else 1].requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"0\.weight has no content \(on meta\): load"):
        save_trained(model, path)
    assert list(path.parent.iterdir()) == []


def test_a_sparse_parameter_is_refused_by_name(path: Path) -> None:
    model = nn.Module()
    model.w = nn.Parameter(torch.eye(3).to_sparse())
    with pytest.raises(CheckpointError, match=r"w can't be saved"):
        save_trained(model, path)


class TestOutput:
    def test_a_full_disk_keeps_the_old_file(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path.write_bytes(b"old")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device"):
            save_trained(nn.Linear(2, 2), path)
        assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [(path.name, b"old")]

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="No such file or directory"):
            save_trained(nn.Linear(2, 2), tmp_path / "no" / "tuned.safetensors")

    def test_a_folder_in_the_way(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError):
            save_trained(nn.Linear(2, 2), tmp_path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_folder(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="Permission denied"):
            save_trained(nn.Linear(2, 2), tmp_path / "tuned.safetensors")


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_nothing_is_unpickled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, model = tuned()
    save_trained(model, path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(sys.modules["pickle"], name, refuse)
    load_trained(base, path)
    assert same(contents(base), contents(model))
