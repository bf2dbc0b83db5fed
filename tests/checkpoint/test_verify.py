from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deltas import HEAD, tuned
from safetensors.torch import save_file, save_model
from torch import Tensor
from zoo import Net, TiedLm

import frostline as fl
from frostline.checkpoint import save_trained, verify_checkpoints
from frostline.errors import CheckpointError, SelectorError

State = dict[str, Tensor]
Write = Callable[[State, Path], Path]
HEAD_ONLY = fl.Plan.all_but("head")


def as_safetensors(state: State, folder: Path) -> Path:
    folder.mkdir()
    save_file(state, folder / "net.safetensors", {"format": "pt"})
    return folder / "net.safetensors"


def as_torch(state: State, folder: Path) -> Path:
    folder.mkdir()
    torch.save(state, folder / "net.pt")
    return folder / "net.pt"


def as_old_torch(state: State, folder: Path) -> Path:
    folder.mkdir()
    torch.save(state, folder / "net.pth", _use_new_zipfile_serialization=False)
    return folder / "net.pth"


def as_wrapped(state: State, folder: Path) -> Path:
    return as_torch({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, folder)


def as_shards(state: State, folder: Path) -> Path:
    folder.mkdir()
    weight_map = {}
    for number in (0, 1, 2):
        part = {name: t for i, (name, t) in enumerate(state.items()) if i % 3 == number}
        file = f"model-{number}.safetensors"
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


WRITERS = [as_safetensors, as_torch, as_old_torch, as_wrapped, as_shards]


@pytest.mark.parametrize("write_tuned", WRITERS)
@pytest.mark.parametrize("write_base", WRITERS)
def test_every_form_with_every_other(tmp_path: Path, write_base: Write, write_tuned: Write) -> None:
    base, model = tuned()
    one = write_base(base.state_dict(), tmp_path / "base")
    other = write_tuned(model.state_dict(), tmp_path / "tuned")
    found = verify_checkpoints(one, other, plan=HEAD_ONLY)
    assert found.kept
    assert {d.name for d in found.differences} == set(HEAD)
    assert {(d.state, d.frozen, d.breaks) for d in found.differences} == {("changed", False, False)}
    for difference in found.differences:
        moved = model.get_parameter(difference.name) - base.get_parameter(difference.name)
        assert difference.max_abs == pytest.approx(float(moved.detach().abs().max()))
    assert (found.same, found.frozen) == (23, 23)
    assert found.nbytes == 2 * sum(t.nbytes for t in base.state_dict().values())


def changed(state: State, name: str, at: int = 0) -> State:
    altered = {key: tensor.clone() for key, tensor in state.items()}
    altered[name].view(-1).view(torch.uint8)[at] ^= 1
    return altered


@pytest.mark.parametrize(
    ("name", "at"),
    [
        pytest.param("stem.weight", 0, id="lowest bit of the first element"),
        pytest.param("layers.2.fc.weight", -1, id="highest byte of the last"),
        pytest.param("layers.1.norm.running_var", 5, id="a statistic"),
        pytest.param("layers.1.norm.num_batches_tracked", 7, id="an integer"),
    ],
)
@pytest.mark.parametrize("write", [as_safetensors, as_torch, as_shards])
def test_one_bit_of_what_is_frozen_breaks_the_plan(
    tmp_path: Path, write: Write, name: str, at: int
) -> None:
    state = Net().state_dict()
    one, other = write(state, tmp_path / "a"), write(changed(state, name, at), tmp_path / "b")
    found = verify_checkpoints(one, other, plan=HEAD_ONLY)
    assert not found.kept
    assert [(d.name, d.state, d.breaks) for d in found.differences] == [(name, "changed", True)]
    assert verify_checkpoints(one, one, plan=HEAD_ONLY).differences == ()


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        pytest.param([0.0], [-0.0], False, id="sign of zero"),
        pytest.param([float("nan")], [float("nan")], True, id="the same NaN"),
        pytest.param([1.0], [float("nan")], False, id="became NaN"),
    ],
)
def test_bits_are_compared(
    tmp_path: Path, before: list[float], after: list[float], same: bool
) -> None:
    one = as_safetensors({"w": torch.tensor(before)}, tmp_path / "a")
    other = as_safetensors({"w": torch.tensor(after)}, tmp_path / "b")
    assert (verify_checkpoints(one, other).differences == ()) is same


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.bool,
     torch.float8_e4m3fn, torch.complex64],
)  # fmt: skip
def test_the_amount_in_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    zeros, ones = torch.zeros(3, 2).to(dtype), torch.ones(3, 2).to(dtype)
    one = as_safetensors({"w": zeros}, tmp_path / "a")
    other = as_torch({"w": ones}, tmp_path / "b")
    (difference,) = verify_checkpoints(one, other).differences
    assert difference.max_abs == 1


def test_the_amount_over_several_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frostline.checkpoint.content.PIECE_BYTES", 16)
    monkeypatch.setattr("frostline.checkpoint.content._MAPPED_BYTES", 20)
    before = {"a": torch.zeros(5, 7), "b": torch.zeros(9)}
    after = {"a": torch.zeros(5, 7), "b": torch.zeros(9)}
    after["a"][0, 1], after["a"][4, 6], after["b"][8] = -0.5, 3.0, -2.0
    for write in (as_safetensors, as_torch):
        one = write(before, tmp_path / f"a-{write.__name__}")
        other = as_torch(after, tmp_path / f"b-{write.__name__}")
        found = verify_checkpoints(one, other)
        assert {d.name: d.max_abs for d in found.differences} == {"a": 3.0, "b": 2.0}


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        pytest.param(torch.zeros(8, 2), "float32 [8, 8] → float32 [8, 2]", id="shape"),
        pytest.param(
            torch.zeros(8, 8, dtype=torch.bfloat16),
            "float32 [8, 8] → bfloat16 [8, 8]",
            id="dtype",
        ),
    ],
)
def test_another_shape_or_dtype_is_a_change(tmp_path: Path, tensor: Tensor, reason: str) -> None:
    state = Net().state_dict()
    one = as_safetensors(state, tmp_path / "a")
    other = as_safetensors(state | {"stem.weight": tensor}, tmp_path / "b")
    found = verify_checkpoints(one, other, plan=HEAD_ONLY)
    assert [(d.name, d.reason, d.breaks) for d in found.differences] == [
        ("stem.weight", reason, True)
    ]


class TestAddedAndMissing:
    def sides(self, tmp_path: Path) -> tuple[Path, Path]:
        state = Net().state_dict()
        after = dict(state)
        del after["stem.bias"], after["head.bias"]
        after |= {"extra.weight": torch.ones(2), "head.scale": torch.ones(1)}
        return as_safetensors(state, tmp_path / "a"), as_safetensors(after, tmp_path / "b")

    def test_they_are_listed(self, tmp_path: Path) -> None:
        found = verify_checkpoints(*self.sides(tmp_path))
        assert [(d.name, d.state, d.frozen) for d in found.differences] == [
            ("head.bias", "missing", None),
            ("stem.bias", "missing", None),
            ("extra.weight", "added", None),
            ("head.scale", "added", None),
        ]
        assert found.kept
        assert found.plan is None

    def test_what_a_plan_freezes_has_to_be_in_both(self, tmp_path: Path) -> None:
        found = verify_checkpoints(*self.sides(tmp_path), plan=HEAD_ONLY)
        assert {d.name for d in found.differences if d.breaks} == {"stem.bias", "extra.weight"}
        assert [d.breaks for d in found.differences] == [True, True, False, False]

    def test_what_is_ignored_breaks_nothing(self, tmp_path: Path) -> None:
        sides = self.sides(tmp_path)
        assert verify_checkpoints(*sides, plan=HEAD_ONLY, ignore=["stem.bias", "extra"]).kept
        assert not verify_checkpoints(*sides, plan=HEAD_ONLY, ignore=["extra"]).kept

    def test_a_head_that_the_base_lacks_can_be_trained(self, tmp_path: Path) -> None:
        state = Net().state_dict()
        body = {name: t for name, t in state.items() if not name.startswith("head")}
        one, other = as_safetensors(body, tmp_path / "a"), as_torch(state, tmp_path / "b")
        assert verify_checkpoints(one, other, plan=HEAD_ONLY).kept


class TestTies:
    def test_one_name_is_enough(self, tmp_path: Path) -> None:
        model = TiedLm()
        save_model(model, str(tmp_path / "a.safetensors"))
        whole = as_torch(model.state_dict(), tmp_path / "b")
        lone = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
        part = as_safetensors(lone, tmp_path / "c")
        for one in (tmp_path / "a.safetensors", whole, part):
            for other in (tmp_path / "a.safetensors", whole, part):
                assert verify_checkpoints(one, other, plan=fl.Plan.freezing("**")).differences == ()

    def test_a_tie_that_came_apart_shows(self, tmp_path: Path) -> None:
        model = TiedLm()
        one = as_torch(model.state_dict(), tmp_path / "a")
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state["lm_head.weight"] += 1
        found = verify_checkpoints(one, as_safetensors(state, tmp_path / "b"))
        assert [d.name for d in found.differences] == ["lm_head.weight"]

    def test_a_plan_on_either_name(self, tmp_path: Path) -> None:
        one = as_torch(TiedLm().state_dict(), tmp_path / "a")
        other = as_torch(TiedLm().state_dict(), tmp_path / "b")
        found = verify_checkpoints(one, other, plan=fl.Plan.freezing("lm_head"))
        assert [d.name for d in found.differences if d.breaks] == ["transformer.wte.weight"]


class TestDelta:
    def files(self, tmp_path: Path, **options: object) -> tuple[Net, Net, Path, Path]:
        base, model = tuned()
        save_trained(model, tmp_path / "delta.safetensors", **options)  # type: ignore[arg-type]
        return base, model, as_shards(base.state_dict(), tmp_path / "base"), (
            tmp_path / "delta.safetensors"
        )  # fmt: skip

    def test_on_its_base(self, tmp_path: Path) -> None:
        _, _, one, delta = self.files(tmp_path)
        found = verify_checkpoints(one, delta)
        assert found.kept
        assert {d.name for d in found.differences} == set(HEAD)
        assert (found.same, found.frozen) == (23, 23)

    def test_on_another_base(self, tmp_path: Path) -> None:
        base, _, _, delta = self.files(tmp_path)
        other = as_torch(changed(base.state_dict(), "stem.weight"), tmp_path / "other")
        found = verify_checkpoints(other, delta)
        assert not found.kept
        assert [(d.name, d.reason) for d in found.differences if d.breaks] == [
            ("stem.weight", "the delta is of another base")
        ]

    def test_on_another_base_that_its_plan_leaves_free(self, tmp_path: Path) -> None:
        base, _, _, delta = self.files(tmp_path, plan=fl.Plan.freezing("layers"))
        other = as_torch(changed(base.state_dict(), "stem.weight"), tmp_path / "other")
        for plan in (None, fl.Plan.freezing("layers")):
            found = verify_checkpoints(other, delta, plan=plan)
            assert [(d.name, d.frozen) for d in found.differences if d.breaks] == [
                ("stem.weight", False)
            ]

    def test_a_plan_that_was_broken_before_saving(self, tmp_path: Path) -> None:
        _, _, one, delta = self.files(tmp_path, plan=fl.Plan.freezing("head.bias"))
        found = verify_checkpoints(one, delta)
        assert [d.name for d in found.differences if d.breaks] == ["head.bias"]
        assert verify_checkpoints(one, delta, plan=HEAD_ONLY).kept

    def test_what_only_the_base_has_is_no_breach(self, tmp_path: Path) -> None:
        base, _, _, delta = self.files(tmp_path)
        more = as_torch(base.state_dict() | {"old_head.weight": torch.ones(1)}, tmp_path / "more")
        for plan in (None, HEAD_ONLY):
            found = verify_checkpoints(more, delta, plan=plan)
            assert found.kept
            assert ("old_head.weight", "missing") in {(d.name, d.state) for d in found.differences}

    def test_on_the_side_of_the_base(self, tmp_path: Path) -> None:
        _, model, _, delta = self.files(tmp_path)
        full = as_torch(model.state_dict(), tmp_path / "full")
        assert verify_checkpoints(delta, full).differences == ()
        assert not verify_checkpoints(
            delta, as_torch(changed(model.state_dict(), "stem.bias"), tmp_path / "x")
        ).kept
        assert verify_checkpoints(delta, delta).differences == ()

    def test_two_deltas_of_one_base(self, tmp_path: Path) -> None:
        base, _, _, delta = self.files(tmp_path)
        model = copy.deepcopy(base)
        fl.freeze(model, all_but=["head", "stem"])
        with torch.no_grad():
            model.stem.bias.add_(1)
        save_trained(model, tmp_path / "second.safetensors")
        found = verify_checkpoints(delta, tmp_path / "second.safetensors")
        assert found.kept
        assert {d.name for d in found.differences} == {"stem.bias", *HEAD}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        pytest.param("classifier", "'classifier' matches none", id="nothing"),
        pytest.param("type:Linear", "does not tell classes", id="class"),
    ],
)
def test_a_plan_that_does_not_fit(tmp_path: Path, rule: str, said: str) -> None:
    path = as_safetensors(Net().state_dict(), tmp_path / "a")
    with pytest.raises(SelectorError, match=said):
        verify_checkpoints(path, path, plan=fl.Plan.freezing(rule))


def test_a_sparse_tensor_is_named(tmp_path: Path) -> None:
    path = as_torch({"w": torch.eye(3).to_sparse()}, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"w is sparse_coo, which can't be compared"):
        verify_checkpoints(path, path)


def test_a_file_that_shrinks_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frostline.checkpoint.content.PIECE_BYTES", 64)
    path = as_safetensors({"w": torch.zeros(64)}, tmp_path / "a")
    other = as_safetensors({"w": torch.zeros(64)}, tmp_path / "b")

    def cut(*_: int) -> None:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 8)

    again = as_safetensors({"a": torch.zeros(64), "w": torch.zeros(64)}, tmp_path / "c")
    path.write_bytes(again.read_bytes())
    other.write_bytes(again.read_bytes())
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        verify_checkpoints(path, other, progress=cut)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    path = as_safetensors(Net().state_dict(), tmp_path / "a")
    seen: list[tuple[int, int]] = []
    verify_checkpoints(path, path, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == 2 * sum(t.nbytes for t in Net().state_dict().values())


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path, suffix: str) -> None:
    state = {f"w{n}": torch.zeros(16 << 20, dtype=torch.uint8) for n in range(32)}
    path = tmp_path / f"net.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    del state
    code = (
        "import resource, sys; from frostline.checkpoint import verify_checkpoints\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert verify_checkpoints(sys.argv[1], sys.argv[1]).same == 32\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    limit_kib = {"safetensors": 64 << 10, "pt": 400 << 10}[suffix]  # of 2 × 512 MiB
    assert int(run.stdout) < limit_kib
