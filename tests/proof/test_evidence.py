from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import nn
from zoo import Net

import frostline as fl
from frostline.naming import take_inventory
from frostline.proof import Evidence, reference


def witness(model):
    inventory = take_inventory(model)
    evidence = Evidence()
    evidence.cover([*(g.aliases[0] for g in inventory.groups), *inventory.buffers])
    return evidence


def one_ulp(tensor, index=0):
    flat = tensor.detach().view(-1)
    flat[index] = torch.nextafter(flat[index], torch.tensor(math.inf))


def test_nothing_moved():
    proof = witness(Net(1)).verify()
    assert (proof.ok, proof.parameters, proof.buffers, proof.tensors) == (True, 8, 3, 11)
    assert proof.bytes == 4 * (72 + 72 + 8 + 8 + 27 + 8 + 8) + 8


def test_one_unit_in_the_last_place_of_one_element():
    model = Net(1)
    evidence = witness(model)
    one_ulp(model.layers[0].fc.weight, 3)
    (change,) = evidence.changes()
    assert (change.name, change.kind, change.elements, change.moved) == (
        "layers.0.fc.weight",
        "parameter",
        64,
        1,
    )
    assert 0 < change.max_abs < 1e-6


def test_a_large_tensor_is_sampled(monkeypatch):
    monkeypatch.setattr(reference, "COPY_BUDGET_BYTES", 100)
    model = nn.Linear(100, 100)
    evidence = witness(model)
    with torch.no_grad():
        model.weight *= 0.5
    (change,) = evidence.changes()
    assert change.moved is None
    assert change.sampled == (1024, 1024)
    assert change.extent.startswith(
        "1,024 of 1,024 sampled elements (of 10,000) moved, by at most 0.0"
    )


def test_a_single_element_of_a_large_tensor_is_still_seen(monkeypatch):
    monkeypatch.setattr(reference, "COPY_BUDGET_BYTES", 100)
    model = nn.Linear(100, 100)
    evidence = witness(model)
    one_ulp(model.weight, 1)
    (change,) = evidence.changes()
    assert change.extent.startswith("few of 10,000 elements moved, none of 1,024 sampled")


def test_copies_stay_within_the_budget(monkeypatch):
    monkeypatch.setattr(reference, "COPY_BUDGET_BYTES", 44)
    small, large = torch.zeros(10), torch.zeros(1000)
    references = reference.take_references([large, small])
    assert [r.digest is None for r in references] == [False, True]
    assert sum(r.values.nbytes for r in references if r.digest is None) <= 44


@pytest.mark.parametrize(
    ("move", "extent"),
    [
        pytest.param(lambda w: w.fill_(math.nan), "4 of 4 elements moved", id="to-nan"),
        pytest.param(
            lambda w: w.fill_(math.inf), "4 of 4 elements moved, by at most inf", id="inf"
        ),
        pytest.param(lambda w: w.neg_(), "4 of 4 elements moved, by at most 0", id="minus-zero"),
    ],
)
def test_amounts_that_are_no_numbers(move, extent):
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.zero_()
        evidence = witness(model)
        move(model.weight)
    assert evidence.changes()[0].extent == extent


def test_nan_that_stays_is_no_change():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(math.nan)
    witness(model).verify()


def test_another_dtype_or_shape():
    model = nn.Linear(2, 2)
    evidence = witness(model)
    model.half()
    assert [change.extent for change in evidence.changes()] == ["its content differs"] * 2


@pytest.mark.parametrize(
    ("tensor", "move"),
    [
        pytest.param(torch.ones(3, dtype=torch.int8), lambda t: t.add_(1), id="int8"),
        pytest.param(torch.ones(3).bfloat16(), lambda t: t.mul_(2), id="bf16"),
        pytest.param(torch.ones(3, dtype=torch.complex64), lambda t: t.mul_(1j), id="complex"),
        pytest.param(torch.tensor([True]), lambda t: t.logical_not_(), id="bool"),
        pytest.param(torch.eye(3).to_sparse(), lambda t: t._values().mul_(2), id="sparse"),
        pytest.param(torch.arange(12.0).view(3, 4).t(), lambda t: t[1, 2].add_(1), id="strided"),
    ],
)
def test_buffers_of_every_kind(tensor, move):
    model = nn.Module()
    model.register_buffer("b", tensor)
    evidence = witness(model)
    evidence.verify()
    move(tensor)
    assert [change.name for change in evidence.changes()] == ["b"]


class Spoiler:
    """Each way to move a frozen tensor, and the words by which the cause is known."""

    def running_statistics(model):
        model.train()
        model.norm(torch.randn(4, 8))
        return "norm.running_mean", "ran in train mode"

    def gradient(model):
        model.fc.weight.grad = torch.ones(8, 8)
        torch.optim.SGD([model.fc.weight], lr=0.1).step()
        return "fc.weight", "it has a gradient"

    def thawed_by_hand(model):
        model.fc.weight.requires_grad_(True)
        one_ulp(model.fc.weight)
        return "fc.weight", "requires_grad is True again"

    def assigned(model):
        state = {k: v + 1 for k, v in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        return "fc.weight", "replaced by another object"

    def removed(model):
        del model.fc.bias
        return "fc.bias", "was removed or replaced after the freeze"

    def data(model):
        model.fc.weight.data.add_(1)
        return "fc.weight", "written without a gradient"

    def own_buffer(model):
        model.ema.add_(1)
        return "ema", "its module's forward, or load_state_dict"


@pytest.mark.parametrize(
    "spoil", [pytest.param(f, id=n) for n, f in vars(Spoiler).items() if not n.startswith("_")]
)
def test_likely_cause(spoil):
    model = nn.Module()
    model.fc = nn.Linear(8, 8).requires_grad_(False)
    model.norm = nn.BatchNorm1d(8).requires_grad_(False)
    model.register_buffer("ema", torch.zeros(2))
    evidence = witness(model)
    name, cause = spoil(model)
    changes = {change.name: change for change in evidence.changes()}
    assert cause in changes[name].cause


def test_the_error_names_each_and_survives_pickling():
    model = Net(3)
    evidence = witness(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    with pytest.raises(fl.FrozenChangedError) as caught:
        evidence.verify()
    text = str(caught.value)
    assert text.startswith("16 of 25 frozen tensors changed:\n  parameter stem.weight: 64 of 64")
    assert text.endswith("and 8 more")
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.changes == caught.value.changes
    assert isinstance(again, RuntimeError)


def test_cover_forgets_keeps_and_records():
    model = nn.Linear(2, 2)
    weight, bias = (group.aliases[0] for group in take_inventory(model).groups)
    evidence = Evidence()
    evidence.cover([weight])
    with torch.no_grad():
        model.weight.add_(1)
        model.bias.add_(1)
    evidence.cover([weight, bias])
    assert [change.name for change in evidence.changes()] == ["weight"]
    evidence.cover([bias])
    assert evidence.changes() == []
    assert evidence.names("parameter") == ("bias",)
