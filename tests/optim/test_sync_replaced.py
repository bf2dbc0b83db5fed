from __future__ import annotations

import copy
import pickle

import pytest
import torch
from syncing import assert_covered, make_model, moved, named, ours, reassign, step, unnamed, values
from torch import nn

import frostline as fl

# --- what is not in the model (any more) ------------------------------------------------------


NAMES = ("0.weight", "2.weight", "3.weight")


@pytest.mark.parametrize(
    ("build", "replaced", "added"),
    [
        pytest.param(ours, NAMES, (), id="frostline"),
        pytest.param(named, NAMES, (), id="named"),
        pytest.param(unnamed, (), NAMES, id="unnamed"),
    ],
)
@pytest.mark.parametrize("state", ["fresh", "keep"])
def test_dead_tensors_after_assign(build, replaced, added, state):
    model = make_model()
    optimizer = build(model)
    step(model, optimizer)
    momentum = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    reassign(model)
    report = fl.sync(model, optimizer, state=state)
    assert (report.replaced, report.added, report.foreign) == (replaced, added, 0)
    assert_covered(optimizer, model)
    kept = [optimizer.state.get(p, {}).get("momentum_buffer") for p in model.parameters()]
    if replaced and state == "keep":
        assert all(torch.equal(a, b) for a, b in zip(momentum, kept, strict=True))
    else:
        assert kept == [None] * 3
    before = values(model)
    step(model, optimizer)
    assert moved(before, model) == set(NAMES)


@pytest.mark.parametrize("build", [ours, named, unnamed], ids=["frostline", "named", "unnamed"])
def test_a_new_head(build):
    """Another size under the same name: its state can't be that of the old one."""
    model = make_model()
    optimizer = build(model)
    step(model, optimizer)
    model[3] = nn.Linear(4, 7, bias=False)
    fl.sync(model, optimizer, state="keep")
    assert_covered(optimizer, model)
    assert model[3].weight not in optimizer.state
    step(model, optimizer)


def test_a_layer_that_was_removed():
    model = make_model()
    optimizer = ours(model)
    model[3] = nn.Identity()
    assert fl.sync(model, optimizer).dropped == ("3.weight",)
    assert_covered(optimizer, model)


def test_other_models_and_lone_tensors_are_left_alone():
    model, teacher = make_model(), make_model(1)
    temperature = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD(
        [{"params": [*model.parameters(), temperature]}, {"params": teacher.parameters()}], lr=0.1
    )
    fl.freeze(model, "0")
    report = fl.sync(model, optimizer)
    assert (report.dropped, report.foreign) == (("0.weight",), 4)
    assert any(p is temperature for p in optimizer.param_groups[0]["params"])
    assert len(optimizer.param_groups[1]["params"]) == 3
    assert "4 that are not this model's left alone" in str(report)


def test_two_models_with_the_same_names_in_one_optimizer():
    one, other = make_model(), make_model(1)
    optimizer = fl.optimizer(torch.optim.SGD, one, lr=0.1)
    optimizer.add_param_group(
        {"params": list(other.parameters()), "param_names": list(NAMES), "lr": 1.0}
    )
    frozen = [fl.freeze(model, "0") for model in (one, other)]
    for model in (one, other):
        assert fl.sync(model, optimizer).dropped == ("0.weight",)
    for freeze in frozen:
        freeze.undo()
    assert fl.sync(other, optimizer).groups == ("group 1",)
    assert fl.sync(one, optimizer).groups == ("all",)
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 3]


def test_what_one_model_declared_says_nothing_of_another():
    one, other = make_model(), make_model(1)
    optimizer = fl.optimizer(torch.optim.SGD, one, lr=0.1)
    frozen = fl.freeze(other, "0")
    trains = [p for p in other.parameters() if p.requires_grad]
    optimizer.add_param_group({"params": trains, "param_names": list(NAMES[1:])})
    frozen.undo()
    assert fl.sync(other, optimizer).groups == ("group 1",)


def test_what_is_dropped_by_hand_leaves_no_state():
    model = make_model()
    optimizer = unnamed(model)
    step(model, optimizer)
    model[0].weight.requires_grad_(False)
    del optimizer.param_groups[0]["params"][0]
    with pytest.raises(KeyError):
        optimizer.state_dict()
    fl.sync(model, optimizer)
    assert len(optimizer.state_dict()["state"]) == 2


# --- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_a_copied_model_and_optimizer_stay_in_step(copied):
    model = make_model()
    fl.freeze(model, ["0", "2"])
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1, layer_decay=0.5)
    step(model, optimizer)
    model, optimizer = copied((model, optimizer))
    fl.unfreeze(model, "0")
    assert fl.sync(model, optimizer).groups == ("layer 0",)
    assert_covered(optimizer, model)


def test_a_wrapped_model_is_the_same_model():
    model = make_model()
    fl.freeze(model, "0")
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    fl.unfreeze(model, "0")
    assert fl.sync(nn.DataParallel(model), optimizer).added == ("0.weight",)
