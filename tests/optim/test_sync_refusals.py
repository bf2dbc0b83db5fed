from __future__ import annotations

import copy

import pytest
import torch
from syncing import held_names, loss_of, make_model, reassign, unnamed
from torch import nn
from torch.optim import lr_scheduler as lrs

import frostline as fl

# --- gradients and refusals -----------------------------------------------------------------------


def test_a_frozen_parameter_loses_its_gradient():
    model = make_model()
    optimizer = unnamed(model)
    loss_of(model).backward()
    model[0].weight.requires_grad_(False)  # by hand, and the gradient stays
    fl.sync(model, optimizer)
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None


def test_piled_up_gradients_are_refused_or_dropped():
    model = make_model()
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)
    loss_of(model).backward()
    with pytest.raises(fl.TransitionError, match=r"0\.weight joins .* has a gradient"):
        fl.sync(model, optimizer)
    assert held_names(optimizer, model) == [["3.weight"]]
    fl.sync(model, optimizer, gradients="drop")
    assert model[0].weight.grad is None
    assert model[3].weight.grad is not None
    assert held_names(optimizer, model) == [["3.weight", "0.weight", "2.weight"]]


class Writer(torch.optim.SGD):
    """Decays what it holds, gradient or not."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - group["lr"])


def with_bias():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))


def muon_and_a_bias():
    model = with_bias()
    fl.freeze(model, "0.bias")
    optimizer = fl.optimizer(torch.optim.Muon, model, lr=0.1)
    fl.unfreeze(model, "0.bias")
    return model, optimizer, {}


def keeping(build):
    def case():
        model = make_model()
        optimizer = build(model.parameters(), lr=0.1)
        fl.freeze(model, "0")
        return model, optimizer, {"state": "keep"}

    return case


def strangers():
    model, other = make_model(), make_model(1)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    optimizer.lives = other  # tensors of no living model would be taken for dead ones
    return model, optimizer, {}


def a_part():
    model = nn.Sequential(make_model(), nn.Linear(2, 2))
    fl.freeze(model, "0.0")
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    fl.unfreeze(model, "0.0")
    return model[0], optimizer, {}


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        pytest.param(
            muon_and_a_bias, fl.OptimizerError, r"0\.bias can't join group 'all'.*Muon", id="muon"
        ),
        pytest.param(
            keeping(torch.optim.LBFGS), fl.OptimizerError, "LBFGS moves parameters", id="lbfgs-keep"
        ),
        pytest.param(keeping(Writer), fl.OptimizerError, "Writer moves param", id="writer-keep"),
        pytest.param(strangers, fl.OptimizerError, "no group of SGD can be told", id="strangers"),
        pytest.param(a_part, fl.OptimizerError, "not a part of it", id="a-part"),
        pytest.param(
            lambda: (make_model(), unnamed(make_model()), {"state": "old"}),
            ValueError,
            "'fresh' or 'keep', got 'old'",
            id="word",
        ),
    ],
)
def test_a_refusal_changes_nothing(case, error, message):
    model, optimizer, options = case()
    members = [list(map(id, group["params"])) for group in optimizer.param_groups]
    rest = [
        {k: copy.copy(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups
    ]
    with pytest.raises(error, match=message):
        fl.sync(model, optimizer, **options)
    assert members == [list(map(id, group["params"])) for group in optimizer.param_groups]
    assert rest == [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def test_a_report_in_words():
    model = make_model()
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1, layer_decay=0.5)
    fl.freeze(model, ["0", "2"])
    assert str(fl.sync(model, optimizer)) == "dropped 2 (0.weight, 2.weight); kept 1"
    fl.unfreeze(model, ["0", "2"])
    reassign(model)
    optimizer.state_dict()
    assert str(fl.sync(model, optimizer)) == (
        "added 2 (0.weight into 'layer 0', 2.weight into 'layer 1'); replaced 1 (3.weight); kept 0"
    )


def test_what_is_kept_on_purpose_is_marked_until_it_thaws():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1)
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    fl.freeze(model, "0")
    fl.sync(model, optimizer, state="keep")
    assert optimizer.param_groups[0]["kept_names"] == ["0.weight", "0.bias"]
    fl.unfreeze(model, "0")
    fl.sync(model, optimizer)
    assert "kept_names" not in optimizer.param_groups[0]


@pytest.mark.parametrize("build", [lrs.StepLR, lrs.MultiStepLR, lrs.ExponentialLR])
def test_a_scheduler_that_goes_by_no_list_may_have_missed_a_group(build):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    scheduler = build(optimizer, [1] if build is lrs.MultiStepLR else 1)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    assert fl.sync(model, optimizer, scheduler).kept
