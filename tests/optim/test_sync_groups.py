from __future__ import annotations

import copy

import pytest
import torch
from syncing import assert_covered, held_names
from torch import nn

import frostline as fl

# --- groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [{}, {"layer_decay": 0.5, "no_decay": ["bias"]}])
def test_a_synchronised_optimizer_is_the_one_that_would_be_built_now(layout):
    def build(model):
        return fl.optimizer(torch.optim.AdamW, model, lr=0.1, **layout)

    def groups(optimizer):
        return [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    fl.freeze(model, ["0", "2", "1.bias"])
    optimizer = build(model)
    fl.unfreeze(model, "1")
    fl.unfreeze(model, "0")
    fl.freeze(model, "3")
    fl.sync(model, optimizer)
    assert groups(optimizer) == groups(build(model))
    assert held_names(optimizer, model) == held_names(build(model), model)


class Deep(nn.Module):
    """Two named halves with norms, for the question where a parameter belongs."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict(
            {k: nn.ModuleDict({"fc": nn.Linear(2, 2), "ln": nn.LayerNorm(2)}) for k in "ab"}
        )
        self.head = nn.Linear(2, 2)


def by_kind(model):
    """Weights decay; biases and norms don't."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors}]


def by_half(model):
    def part(module):
        return [p for p in module.parameters() if p.requires_grad]

    return [{"params": part(model.backbone), "lr": 0.01}, {"params": part(model.head)}]


def by_whim(model):
    """Biases in both groups, so that the kind alone does not decide."""
    apart = [p for n, p in model.backbone.named_parameters() if p.requires_grad and "bias" in n]
    ids = set(map(id, apart))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    return [{"params": rest}, {"params": apart, "lr": 0.01}]


@pytest.mark.parametrize(
    ("groups", "trained", "thawed", "index"),
    [
        pytest.param(by_kind, ["head", "backbone.b"], "backbone.a.fc.weight", 0, id="kind-matrix"),
        pytest.param(by_kind, ["head", "backbone.b"], "backbone.a.fc.bias", 1, id="kind-bias"),
        pytest.param(by_kind, ["head", "backbone.b"], "backbone.a.ln.weight", 1, id="kind-norm"),
        pytest.param(
            by_kind,
            ["head.weight", "backbone.a.fc.bias"],
            "backbone.a.fc.weight",
            0,
            id="kind-before-path",
        ),
        pytest.param(
            by_whim, ["head", "backbone.b"], "backbone.a.fc.bias", 1, id="kind-before-distance"
        ),
        pytest.param(by_half, ["head", "backbone.b"], "backbone.a.fc.weight", 0, id="half"),
        pytest.param(
            by_half, ["head", "backbone.a.fc.weight"], "backbone.a.fc.bias", 0, id="half-bias"
        ),
        pytest.param(by_half, ["head.bias", "backbone.b"], "head.weight", 1, id="half-head"),
    ],
)
def test_the_nearest_sibling(groups, trained, thawed, index):
    model = Deep()
    fl.freeze(model, all_but=trained)
    optimizer = torch.optim.SGD(groups(model), lr=0.1)
    fl.unfreeze(model, thawed)
    report = fl.sync(model, optimizer)
    assert (report.added, report.groups) == ((thawed,), (f"group {index}",))
    assert any(p is model.get_parameter(thawed) for p in optimizer.param_groups[index]["params"])


def test_a_hand_built_group_gets_back_what_left_it():
    """Even if the group is empty meanwhile, and every sibling is elsewhere."""
    model = Deep()
    optimizer = torch.optim.SGD(by_half(model), lr=0.1, momentum=0.9)
    whole = held_names(optimizer, model)
    frozen = fl.freeze(model, "backbone")
    fl.sync(model, optimizer)
    assert held_names(optimizer, model)[0] == []
    frozen.undo()
    fl.sync(model, copy.deepcopy(optimizer))
    fl.sync(model, optimizer)
    assert held_names(optimizer, model) == whole


def test_a_parameter_that_was_not_there_when_the_optimizer_was_built():
    model = Deep()
    optimizer = fl.optimizer(
        torch.optim.SGD, model, lr=0.1, options={"backbone": {"lr": 0.01}, "head": {"lr": 1.0}}
    )
    model.backbone["b"]["adapter"] = nn.Linear(2, 2)
    report = fl.sync(model, optimizer)
    assert report.groups == ("backbone", "backbone")
    assert str(report) == (
        "added 2 (backbone.b.adapter.weight, backbone.b.adapter.bias into 'backbone'); kept 10"
    )


def test_tied_parameters_join_once():
    model = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4)})
    model["head"].weight = model["embed"].weight
    fl.freeze(model, all_but="head.bias")
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    fl.unfreeze(model, "head")
    assert fl.sync(model, optimizer).added == ("embed.weight",)
    assert_covered(optimizer, model)


def test_a_factory_that_regroups():
    def split(groups, lr):
        parameters = [p for group in groups for p in group["params"]]
        wide = [p for p in parameters if p.ndim > 1]
        thin = [p for p in parameters if p.ndim < 2]
        return torch.optim.SGD([{"params": wide}, {"params": thin, "momentum": 0.5}], lr=lr)

    model = Deep()
    fl.freeze(model, "backbone.a")
    optimizer = fl.optimizer(split, model, lr=0.1)
    fl.unfreeze(model, "backbone.a.ln")
    report = fl.sync(model, optimizer)
    assert all(p.ndim == 1 for p in optimizer.param_groups[1]["params"])
    assert len(report.added) == 2
    assert_covered(optimizer, model)
