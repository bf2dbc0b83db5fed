"""Modes that ``train`` and ``eval`` alone do not settle: shared, fused, called one by one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from zoo import beside_a_head

import frostline as fl


class Shared(nn.Module):
    """One Dropout object serves a frozen and a live layer."""

    def __init__(self) -> None:
        super().__init__()
        drop = nn.Dropout(0.5)
        self.body = nn.Sequential(nn.Linear(4, 400), drop, Failing())
        self.head = nn.Sequential(drop, nn.Linear(400, 400))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Failing(nn.Module):
    fails = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("on purpose")
        return x


@pytest.mark.parametrize(
    "duplicate",
    [
        pytest.param(lambda model: model, id="itself"),
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda model: pickle.loads(pickle.dumps(model)), id="pickle"),
    ],
)
def test_a_shared_dropout_is_off_where_it_is_frozen_and_on_where_it_trains(duplicate):
    model = Shared()
    fl.freeze(model, "body")
    model = duplicate(model)
    model.train()
    hidden = model.body(torch.randn(3, 4))
    assert (hidden != 0).all()
    assert (model.head[0](hidden) == 0).any()
    assert model.head[0].training
    model.eval()
    model.body(torch.randn(3, 4))
    assert not model.head[0].training


def test_a_shared_dropout_is_given_back_after_an_exception():
    model = Shared()
    frozen = fl.freeze(model, "body")
    model.train()
    model.body[2].fails = True
    for _ in range(2):
        with pytest.raises(RuntimeError, match="on purpose"):
            model.body(torch.randn(3, 4))
        assert model.head[0].training
    frozen.undo()
    assert not model.body._forward_hooks
    assert not model.body._forward_hooks_always_called


def encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_frozen_transformer_encoder_keeps_padded_positions():
    model = beside_a_head(encoder())
    x = torch.randn(2, 3, 4)
    padded = torch.tensor([[False, False, False], [False, True, True]])
    with torch.no_grad():
        assert not model.body.eval()(x, src_key_padding_mask=padded)[1, 1:].any()
    model.train()
    frozen = fl.freeze(model, "body")
    assert model.body(x, src_key_padding_mask=padded)[1, 1:].all()
    copied = copy.deepcopy(model).train()
    assert copied.body(x, src_key_padding_mask=padded)[1, 1:].all()
    frozen.undo()
    assert model.body.use_nested_tensor
    assert model.body.training
    fl.unfreeze(copied, "body")
    assert copied.body.use_nested_tensor


@pytest.mark.parametrize("trains", [0, 1], ids=["the-first-layer", "a-later-layer"])
def test_a_transformer_encoder_of_which_one_layer_trains(trains):
    model = beside_a_head(encoder())
    x, padded = torch.randn(2, 3, 4), torch.tensor([[False, False, False], [False, True, True]])
    frozen = fl.freeze(model, all_but=f"body.layers.{trains}")
    for mode in (False, True):
        assert model.train(mode).body(x, src_key_padding_mask=padded)[1, 1:].all()
    frozen.undo()
    assert model.body.use_nested_tensor
    assert not model.body._forward_pre_hooks


class Encoder(nn.Module):
    """A model of which users call methods, not only forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 400), nn.Dropout(0.5), nn.BatchNorm1d(400))
        self.head = nn.Linear(400, 2)

    def encode(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x)
        return x


def test_modules_that_are_called_one_by_one_are_pinned():
    model = Encoder()
    frozen = fl.freeze(model, "body")
    x = torch.randn(3, 4)
    model.train()
    assert torch.equal(model.encode(x), model.train().encode(x))
    assert frozen.verify().ok


@pytest.mark.parametrize(
    "noise",
    [
        nn.Dropout(0.5),
        nn.AlphaDropout(0.5),
        nn.Dropout1d(0.5),
        nn.RReLU(),
        nn.FeatureAlphaDropout(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_randomness_is_off_in_the_frozen_part(noise):
    model = beside_a_head(nn.Sequential(nn.Linear(4, 4), noise))
    fl.freeze(model, "body")
    model.train()
    x = torch.randn(50, 4)
    assert torch.equal(model.body(x), model.body(x))
