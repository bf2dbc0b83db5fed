from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.finetune.networks import BUILTIN, DigitsCNN


@pytest.mark.parametrize(
    ("name", "parameters", "input_shape", "output_shape"),
    [
        pytest.param("tutorial", 86, (3, 8), (3, 10), id="tutorial"),
        pytest.param("digits-cnn", 130_533, (3, 1, 8, 8), (3, 5), id="digits-cnn"),
    ],
)
def test_built_in_networks(name, parameters, input_shape, output_shape):
    model = BUILTIN[name]()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(input_shape)).shape == output_shape


def test_the_digits_network_has_what_makes_freezing_hard():
    model = DigitsCNN(5)
    stages = [name for name, _ in model.named_children()]
    assert stages == ["stem", "block1", "block2", "block3", "head"]
    for block in (model.block1, model.block2, model.block3):
        kinds = {type(module) for module in block}
        assert {nn.BatchNorm2d, nn.Dropout2d} <= kinds
