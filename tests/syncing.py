"""Models, optimizers and checks that the tests of fl.sync share."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import frostline as fl


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, 4, bias=False),
        nn.Tanh(),
        nn.Linear(4, 4, bias=False),
        nn.Linear(4, 2, bias=False),
    )


def loss_of(model):
    return model(torch.linspace(-1, 1, 15).reshape(5, 3)).square().mean()


def step(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad()


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(before, model):
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


def held_names(optimizer, model):
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names.get(id(p), "?") for p in group["params"]] for group in optimizer.param_groups]


def assert_covered(optimizer, model):
    """Each trainable parameter is in exactly one group, by identity; state is of members only."""
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    wanted = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(held) == sorted(wanted)
    assert {id(p) for p in optimizer.state} <= set(held)
    for group in optimizer.param_groups:
        if "param_names" in group:
            named = dict(model.named_parameters())
            assert [id(named[n]) for n in group["param_names"]] == list(map(id, group["params"]))


def adopt(optimizer):
    """An optimizer of the same class and groups, from the other's ``state_dict``."""
    again = copy.deepcopy(optimizer)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return again


o = torch.optim
OPTIMIZERS = {
    "SGD": o.SGD,
    "SGD-momentum": functools.partial(o.SGD, momentum=0.9, weight_decay=0.1),
    "SGD-nesterov": functools.partial(o.SGD, momentum=0.9, nesterov=True),
    "SGD-foreach": functools.partial(o.SGD, momentum=0.9, foreach=True),
    "SGD-fused": functools.partial(o.SGD, momentum=0.9, fused=True),
    "Adam": o.Adam,
    "Adam-amsgrad": functools.partial(o.Adam, amsgrad=True),
    "Adam-foreach": functools.partial(o.Adam, foreach=True),
    "Adam-fused": functools.partial(o.Adam, fused=True),
    "Adam-tensor-lr": lambda groups, lr: o.Adam(groups, lr=torch.tensor(lr)),
    "AdamW": functools.partial(o.AdamW, weight_decay=0.1),
    "AdamW-foreach": functools.partial(o.AdamW, foreach=True),
    "AdamW-fused": functools.partial(o.AdamW, fused=True),
    "RMSprop": functools.partial(o.RMSprop, momentum=0.9, centered=True),
    "Adagrad": functools.partial(o.Adagrad, initial_accumulator_value=0.5),
    "Adagrad-fused": functools.partial(o.Adagrad, fused=True),
    "Adadelta": functools.partial(o.Adadelta, rho=0.5),
    "Adamax": o.Adamax,
    "NAdam": o.NAdam,
    "RAdam": o.RAdam,
    "ASGD": o.ASGD,
    "Rprop": o.Rprop,
    "Adafactor": o.Adafactor,
    "Muon": o.Muon,
}
every_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
LAYOUTS = {"one-group": {}, "by-layer": {"layer_decay": 0.5}}


def reassign(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def named(model):
    return torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)


def unnamed(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def ours(model):
    return fl.optimizer(torch.optim.SGD, model, lr=0.1, momentum=0.9)
