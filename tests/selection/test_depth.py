from __future__ import annotations

import pytest
from torch import nn
from zoo import Net, TiedLm, Vit

from frostline.naming import take_inventory
from frostline.selection.depth import layer_depths


def resnet() -> nn.Module:
    def stage() -> nn.Module:
        return nn.Sequential(*(nn.ModuleDict({"conv": nn.Linear(1, 1, bias=False)}) for _ in "ab"))

    layers = {"conv1": nn.Linear(1, 1, bias=False), "layer1": stage(), "layer2": stage()}
    return nn.ModuleDict(layers | {"fc": nn.Linear(1, 1, bias=False)})


@pytest.mark.parametrize(
    ("model", "depths"),
    [
        pytest.param(Net(2), [0, 0] + [1] * 4 + [2] * 4 + [3, 3], id="stem-blocks-head"),
        pytest.param(Vit(), [0, 0, 1, 1, 2, 2, 3, 3], id="tokens-are-below-the-blocks"),
        pytest.param(resnet(), [0, 1, 2, 3, 4, 5], id="stages-in-a-row"),
        pytest.param(
            nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), [0, 0, 1, 1], id="plain"
        ),
        pytest.param(TiedLm(), [0, 0, 0], id="tie-counts-where-it-is-first"),
        pytest.param(nn.Linear(1, 1), [0, 0], id="one-layer"),
    ],
)
def test_depths(model, depths):
    assert layer_depths(take_inventory(model)) == depths
