"""A freeze written down by name and brought back, in another process or after a crash."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from torch import nn

import frostline as fl


def make(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4))


def through_json(state: dict[str, object]) -> dict[str, object]:
    return json.loads(json.dumps(state))


def through_torch(state: dict[str, object]) -> dict[str, object]:
    file = io.BytesIO()
    torch.save({"freeze": state}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["freeze"]


@pytest.mark.parametrize("carry", [through_json, through_torch])
@pytest.mark.parametrize(
    ("plan", "options"),
    [
        pytest.param("0", {}, id="selector"),
        pytest.param(fl.first(2), {}, id="structure"),
        pytest.param(fl.where(lambda name, p: name.startswith("0")), {}, id="function"),
        pytest.param(["0", "1"], {"pin_eval": False}, id="held-statistics"),
        pytest.param("0", {"pin_eval": "1"}, id="pinned-besides"),
        pytest.param("1", {"hold_statistics": False}, id="free-statistics"),
    ],
)
def test_round_trip(carry, plan, options):
    model = make()
    model[2].bias.requires_grad_(False)  # by hand: its flag comes back too
    frozen = fl.freeze(model, plan, **options)
    state = carry(frozen.state_dict())
    again = make(1)
    again.load_state_dict(model.state_dict())
    resumed = fl.resume_freeze(again, state)
    hand_frozen = ("2.bias",)
    assert resumed.names == (*frozen.names, *hand_frozen)
    assert resumed.buffers == frozen.buffers
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert [m.training for m in again.modules()] == [m.training for m in model.modules()]
    assert resumed.repairs == ()
    assert resumed.state_dict()["pinned"] == state["pinned"]
    resumed.undo()
    assert all(p.requires_grad for p in again.parameters())


def test_the_state_says_what_is_frozen_by_name():
    model = make()
    state = fl.freeze(model, "0").state_dict()
    assert state["plan"] == "frostline: 1\nrules:\n- freeze: '0'\n"
    assert state["pinned"] == ["0"]
    assert state["parameters"]["0.bias"] == {
        "shape": [4],
        "dtype": "torch.float32",
        "trainable": False,
        "frozen": fl.fingerprint(model[0].bias),
    }
    assert state["parameters"]["3.bias"]["frozen"] is None


def swapped(model: nn.Module) -> nn.Module:
    """Two layers of one shape in each other's place: by position nothing is amiss."""
    model[0], model[2] = model[2], model[0]
    return model


def widened(model: nn.Module) -> nn.Module:
    model[3] = nn.Linear(4, 5)
    return model


def halved(model: nn.Module) -> nn.Module:
    model[3].bfloat16()
    return model


def moved_statistics(model: nn.Module) -> nn.Module:
    model[1].running_mean[0] += 1
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(swapped, r"0\.weight: its content is not what was frozen", id="swapped"),
        pytest.param(lambda m: m[:3], r"3\.weight: not in the model", id="missing"),
        pytest.param(
            lambda m: nn.Sequential(*m, nn.Linear(4, 1)), r"4\.bias: not in the saved", id="extra"
        ),
        pytest.param(widened, r"3\.weight: saved as torch.float32 \[4, 4\], is .*5, 4", id="shape"),
        pytest.param(halved, r"3\.weight: saved as torch.float32", id="dtype"),
        pytest.param(moved_statistics, r"1\.running_mean: its content", id="buffer"),
        pytest.param(lambda m: nn.Sequential(m), r"0\.weight: not in the model", id="nested"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_and_untouched(change, message):
    model = make()
    state = fl.freeze(model, ["0", "1"]).state_dict()
    other = change(copy.deepcopy(make()))
    other.train()
    with pytest.raises(fl.PlanError, match=message):
        fl.resume_freeze(other, state)
    assert all(p.requires_grad for p in other.parameters())
    assert all(m.training and not m._forward_pre_hooks for m in other.modules())


@pytest.mark.parametrize("wrapped_first", [True, False], ids=["prefix-lost", "prefix-added"])
def test_a_repair_maps_one_prefix_and_says_so(wrapped_first):
    bare, wrapped = make(), nn.ModuleDict({"encoder": make()})
    source, target = (wrapped, bare) if wrapped_first else (bare, wrapped)
    state = fl.freeze(source, ["0", "1"]).state_dict()
    resumed = fl.resume_freeze(target, state, repair=True)
    arrow = "encoder.0.weight → 0.weight" if wrapped_first else "0.weight → encoder.0.weight"
    assert resumed.repairs[0] == arrow
    assert [name.removeprefix("encoder.") for name in resumed.names] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
    ]
    assert resumed.verify().buffers == 3


def test_a_repair_swaps_nothing_of_the_same_shape():
    state = fl.freeze(make(), "0").state_dict()
    other = nn.ModuleDict({"encoder": swapped(make())})
    with pytest.raises(fl.PlanError, match=r"encoder\.0\.weight: its content"):
        fl.resume_freeze(other, state, repair=True)


def test_what_is_no_state_is_refused():
    with pytest.raises(fl.PlanError, match="no saved freeze"):
        fl.resume_freeze(make(), {"frostline": 1})


def test_pending_gradients_are_refused():
    model = make()
    state = fl.freeze(model, "0").state_dict()
    other = make()
    other(torch.randn(3, 4)).sum().backward()
    with pytest.raises(fl.TransitionError):
        fl.resume_freeze(other, state)
