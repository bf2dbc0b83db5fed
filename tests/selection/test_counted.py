from __future__ import annotations

import pytest
from torch import nn
from zoo import Net, TiedLm

import frostline as fl
from frostline.errors import SelectorError

BLOCK = ("fc.weight", "fc.bias", "norm.weight", "norm.bias")


def of(*places):
    return tuple(
        name
        for place in places
        for name in (
            [f"{place}.{end}" for end in BLOCK]
            if place.startswith("layers")
            else [f"{place}.weight", f"{place}.bias"]
        )
    )


ALL = of("stem", "layers.0", "layers.1", "layers.2", "head")


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        pytest.param("blocks:first:1", of("layers.0"), id="first"),
        pytest.param("blocks:last:2", of("layers.1", "layers.2"), id="last"),
        pytest.param("blocks:all", of("layers.0", "layers.1", "layers.2"), id="all"),
        pytest.param(
            "blocks:last:1:norm", ("layers.2.norm.weight", "layers.2.norm.bias"), id="kid"
        ),
        pytest.param("layers:first:2", of("stem", "layers.0"), id="with-the-stem"),
        pytest.param("layers:last:2", of("layers.2", "head"), id="with-the-head"),
        pytest.param(
            "layers:last:5", of("stem", "layers.0", "layers.1", "layers.2", "head"), id="5"
        ),
        # 72 of the stem, 88 of a block, 27 of the head: 363 in all.
        pytest.param("lowest:0.2", of("stem"), id="just-the-stem"),
        pytest.param("lowest:0.199", of("stem"), id="72-of-72"),
        pytest.param("lowest:0.198", ("stem.weight",), id="72-of-71"),
        pytest.param(
            "lowest:1", of("stem", "layers.0", "layers.1", "layers.2", "head"), id="whole"
        ),
    ],
)
def test_selected(selector, names):
    assert fl.select(Net(), selector).names == names


@pytest.mark.parametrize(
    "text", ["blocks:first:2", "blocks:all", "blocks:last:3:mlp", "layers:last:1", "lowest:0.25"]
)
def test_written_as_read(text):
    assert fl.Rule(action="train", select=text).select.plain() == text


def test_an_empty_stem_or_head_is_no_layer():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    assert fl.select(model, "layers:first:1").names == ("0.weight", "0.bias")


def test_a_tied_head_is_in_the_head_as_well():
    assert fl.select(TiedLm(), "layers:last:1").names == ("transformer.wte.weight",)


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        pytest.param("blocks:last:4", "asks for 4 of the 3 blocks .*3 modules", id="too-many"),
        pytest.param("layers:first:6", "asks for 6 of the 5 layers", id="too-many-layers"),
        pytest.param("blocks:last:1:nrm", "no child 'nrm'. Nearest names: 'norm'", id="no-child"),
        pytest.param("blocks:2", "expected a count of 1 or more", id="no-end"),
        pytest.param("blocks:last:0", "expected a count of 1 or more", id="zero"),
        pytest.param("blocks:last:-1", "expected a count of 1 or more", id="negative"),
        pytest.param("layers:all", "expected a count of 1 or more", id="all-layers"),
        pytest.param("layers:last:1:fc", "only blocks have children", id="child-of-a-layer"),
        pytest.param("lowest:0", "above 0 and at most 1, got 0.0", id="share-of-0"),
        pytest.param("lowest:50", "above 0 and at most 1, got 50.0", id="percent"),
        pytest.param("lowest:nan", "above 0 and at most 1", id="nan"),
        pytest.param("lowest:half", "expected a share", id="word"),
        pytest.param(
            "lowest:0.1", "the first parameter alone, stem.weight, holds 17.6%", id="less"
        ),
    ],
)
def test_refused(selector, message):
    with pytest.raises(SelectorError, match=message):
        fl.select(Net(), selector)
