"""What a delta is not loaded into: another model, and what is frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deltas import contents, same, tuned
from torch import nn
from zoo import Net

import frostline as fl
from frostline.checkpoint import load_trained, save_trained
from frostline.errors import CheckpointError, TransitionError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tuned.safetensors"


def other_weights(base: Net) -> Net:
    with torch.no_grad():
        base.layers[1].fc.weight[0, 0] += 1e-7
        base.layers[1].norm.running_mean[3] = -0.0
    return base


def other_dtype(base: Net) -> Net:
    return base.double()


def with_more(base: Net) -> Net:
    base.extra = nn.Linear(1, 1)
    return base


def with_another_head(base: Net) -> Net:
    base.head = nn.Linear(8, 4)
    return base


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            other_weights,
            ["another base: 2 of 23 tensors", "\n  layers.1.fc.weight\n  layers.1.norm.running_"],
            id="weights",
        ),
        pytest.param(
            other_dtype,
            ["another architecture", "stem.weight: saved as float32 [8, 8], is float64 [8, 8]"],
            id="dtype",
        ),
        pytest.param(
            with_more, ["2 differences", "extra.weight: not in the delta's model"], id="more"
        ),
        pytest.param(lambda base: base.layers, ["stem.weight: not in this model"], id="less"),
        pytest.param(
            with_another_head,
            ["head.weight: saved as float32 [3, 8], is float32 [4, 8]"],
            id="head of another size",
        ),
    ],
)  # fmt: skip
def test_another_model_is_refused_and_left_alone(
    path: Path, change: Callable[[Net], nn.Module], said: list[str]
) -> None:
    base, model = tuned()
    save_trained(model, path)
    other = change(base)
    before = contents(other)
    with pytest.raises(CheckpointError) as caught:
        load_trained(other, path)
    for words in (*said, "Nothing was changed"):
        assert words in str(caught.value)
    assert same(contents(other), before)


def test_what_is_frozen_is_not_overwritten(path: Path) -> None:
    base, model = tuned()
    save_trained(model, path)
    frozen = fl.freeze(base, "head.bias")
    before = contents(base)
    with pytest.raises(TransitionError, match=r"head\.bias is frozen.+load first, then freeze"):
        load_trained(base, path)
    assert same(contents(base), before)
    assert frozen.verify().ok
