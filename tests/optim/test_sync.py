from __future__ import annotations

import copy

import pytest
import torch
from syncing import (
    LAYOUTS,
    adopt,
    assert_covered,
    every_optimizer,
    held_names,
    make_model,
    moved,
    step,
    values,
)
from torch import nn

import frostline as fl


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@every_optimizer
def test_freeze_and_thaw_in_the_middle_of_training(build, layout):
    model = make_model()
    optimizer = fl.optimizer(build, model, lr=0.05, **layout)
    step(model, optimizer)
    frozen = fl.freeze(model, "0")
    report = fl.sync(model, optimizer)
    assert (report.dropped, report.kept) == (("0.weight",), ("2.weight", "3.weight"))
    assert_covered(optimizer, model)
    adopt(optimizer)
    before = values(model)
    for _ in range(3):
        step(model, optimizer)
    frozen.verify()
    assert moved(before, model) == {"2.weight", "3.weight"}

    frozen.undo()
    report = fl.sync(model, optimizer)
    assert (report.added, report.dropped) == (("0.weight",), ())
    assert_covered(optimizer, model)
    adopt(optimizer)
    before = values(model)
    step(model, optimizer)
    assert moved(before, model) == {"0.weight", "2.weight", "3.weight"}
    assert fl.sync(model, optimizer).kept == ("0.weight", "2.weight", "3.weight")


@every_optimizer
def test_a_thawed_parameter_moves_as_under_a_new_optimizer(build):
    """Fresh state, the constructor's included: its first steps are those of an optimizer of its
    own."""
    model = make_model()
    optimizer = fl.optimizer(build, model, lr=0.05)
    for _ in range(3):
        step(model, optimizer)
    fl.freeze(model, "0")
    fl.sync(model, optimizer)
    fl.unfreeze(model, "0")
    fl.sync(model, optimizer)
    twin = nn.Parameter(model[0].weight.detach().clone())
    alone = build([twin], lr=0.05)
    for scale in (1.0, 2.0):
        model[0].weight.grad = torch.full((4, 3), scale)
        twin.grad = torch.full((4, 3), scale)
        optimizer.step()
        alone.step()
    assert torch.equal(model[0].weight, twin)


@every_optimizer
def test_state_kept_on_request(build):
    """Frozen for a while and thawed: as if those steps had not been, for that parameter."""
    model = make_model()
    optimizer = fl.optimizer(build, model, lr=0.05)
    for _ in range(2):
        step(model, optimizer)
    before = copy.deepcopy(optimizer.state[model[0].weight])
    frozen = fl.freeze(model, "0")
    report = fl.sync(model, optimizer, state="keep")
    assert (report.declared, report.dropped) == (("0.weight",), ())
    step(model, optimizer)
    frozen.verify()
    frozen.undo()
    assert fl.sync(model, optimizer, state="keep").kept == ("0.weight", "2.weight", "3.weight")
    after = optimizer.state[model[0].weight]
    assert before.keys() == after.keys()
    for key, value in before.items():
        same = torch.equal(value, after[key]) if torch.is_tensor(value) else value == after[key]
        assert same, key


@every_optimizer
def test_declared_parameters_stay_without_state(build):
    model = make_model()
    optimizer = fl.optimizer(build, model, lr=0.05, declare_all=True)
    for _ in range(3):
        step(model, optimizer)
    frozen = fl.freeze(model, "0")
    report = fl.sync(model, optimizer)
    assert (report.declared, report.dropped) == (("0.weight",), ())
    assert model[0].weight.grad is None
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
    # What a constructor gives (Adagrad) is there again, what the steps made is gone.
    fresh = build([model[0].weight], lr=0.05).state
    assert len(optimizer.state.get(model[0].weight, {})) == len(fresh.get(model[0].weight, {}))
    step(model, optimizer)
    adopt(optimizer)
    frozen.undo()
    fl.sync(model, optimizer)
    before = values(model)
    step(model, optimizer)
    assert moved(before, model) == {"0.weight", "2.weight", "3.weight"}


def test_adagrad_state_is_made_for_what_joins():
    model = make_model()
    fl.freeze(model, "0")
    optimizer = fl.optimizer(torch.optim.Adagrad, model, initial_accumulator_value=0.5)
    fl.unfreeze(model, "0")
    fl.sync(model, optimizer)
    state = optimizer.state[model[0].weight]
    assert torch.equal(state["sum"], torch.full((4, 3), 0.5))
    assert float(state["step"]) == 0


def test_fused_sgd_with_dampening_takes_nothing_in():
    """Its first step knows no dampening, and torch can't mix first steps with later ones."""
    model = make_model()
    fl.freeze(model, "0")
    optimizer = fl.optimizer(
        torch.optim.SGD, model, lr=0.1, momentum=0.9, dampening=0.5, fused=True
    )
    step(model, optimizer)
    fl.unfreeze(model, "0")
    with pytest.raises(fl.OptimizerError, match="fused=False"):
        fl.sync(model, optimizer)
    assert held_names(optimizer, model) == [["2.weight", "3.weight"]]


def test_adam_state_of_a_frozen_parameter_is_freed():
    model = make_model()
    optimizer = fl.optimizer(torch.optim.AdamW, model)
    step(model, optimizer)
    fl.freeze(model, "0")
    fl.sync(model, optimizer)
    assert len(optimizer.state) == 2


@pytest.mark.parametrize("part", ["0", "3"], ids=["first", "last"])  # the first has the state
def test_lbfgs_forgets_its_history(part):
    model = make_model()
    optimizer = fl.optimizer(torch.optim.LBFGS, model, lr=0.1)
    step(model, optimizer)
    assert fl.sync(model, optimizer).added == ()
    assert optimizer.state, "nothing changed, so the history stays"
    frozen = fl.freeze(model, part)
    fl.sync(model, optimizer)
    assert not optimizer.state
    for _ in range(2):
        step(model, optimizer)
    frozen.verify()
    frozen.undo()
    fl.sync(model, optimizer)
    before = values(model)
    step(model, optimizer)
    assert moved(before, model) == {"0.weight", "2.weight", "3.weight"}


def test_sparse_adam():
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Embedding(5, 2, sparse=True))
    fl.freeze(model, "0")
    optimizer = fl.optimizer(torch.optim.SparseAdam, model, lr=0.1)
    ids = torch.tensor([1, 3])
    for expected in ({"1.weight"}, {"0.weight", "1.weight"}):
        before = values(model)
        sum(part(ids).sum() for part in model).backward()
        optimizer.step()
        model.zero_grad()
        assert moved(before, model) == expected
        fl.unfreeze(model, "0")
        fl.sync(model, optimizer)
    optimizer.state_dict()
