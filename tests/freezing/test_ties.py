"""One memory under several names is frozen under all of them."""

from __future__ import annotations

import pytest
from torch import nn
from zoo import beside_a_head

import frostline as fl


def test_tied_weights_are_one_tensor_under_every_name():
    model = beside_a_head(nn.Linear(4, 2))
    model.head.weight = model.body.weight
    with pytest.raises(fl.PlanError, match=r"rules at odds.*tied"):
        fl.freeze(
            model,
            fl.Plan(
                rules=[
                    fl.Rule(action="freeze", select="body.weight"),
                    fl.Rule(action="train", select="head.weight"),
                ]
            ),
        )
    frozen = fl.freeze(model, "head.weight")
    assert frozen.names == ("body.weight",)
    assert not model.body.weight.requires_grad


def test_two_parameters_on_one_memory_are_frozen_together():
    model = beside_a_head(nn.Linear(4, 2))
    model.head.weight = nn.Parameter(model.body.weight.data)
    frozen = fl.freeze(model, "body.weight")
    assert frozen.names == ("body.weight", "head.weight")
    assert not model.head.weight.requires_grad
