"""What ``fl.check`` names in savings that do not come, each fault shown to be there."""

from __future__ import annotations

import torch
from faults import codes
from torch import nn

import frostline as fl


def eight_layers() -> nn.Sequential:
    return nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(8)))


def test_the_first_seven_frozen_but_one_early_bias_trains() -> None:
    model = eight_layers()
    fl.freeze(model, all_but=["0.0.bias", "7"])
    (by_order,) = fl.check(model)
    assert (by_order.code, by_order.where) == ("FL501", "0.0.bias")
    (measured,) = fl.check(model, example=torch.randn(32, 64))
    assert measured.where == "0.0.bias"
    assert "88.0 KiB of activations, 32.0 KiB without it" in measured.message


def test_the_first_seven_frozen_but_the_input_requires_grad() -> None:
    model = eight_layers()
    fl.freeze(model, all_but="7")
    x = torch.randn(32, 64)
    assert codes(model, example=x) == set()
    assert codes(model, example=x.requires_grad_()) == {"FL502"}


def test_a_hook_that_makes_the_embedding_require_grad() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    fl.freeze(model, all_but="2")
    model[0].register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    findings = fl.check(model, example=torch.arange(4))
    assert [(f.code, f.where) for f in findings] == [("FL502", "0")]


def test_frozen_by_a_hook_that_zeroes_gradients() -> None:
    model = eight_layers()
    for parameter in model[:7].parameters():
        parameter.register_hook(torch.zeros_like)
    findings = fl.check(model, example=torch.randn(2, 64))
    assert {f.code for f in findings} == {"FL503"}
    assert len(findings) == 14
