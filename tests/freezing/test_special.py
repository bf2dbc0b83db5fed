"""Layers that rewrite what they hold: still all the same, or refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from zoo import beside_a_head

import frostline as fl


def train(model: nn.ModuleDict, x: Tensor | None = None, steps: int = 3) -> None:
    """The whole model in train mode and in an optimizer with decay and momentum."""
    x = torch.randn(5, 4) if x is None else x
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        model.head(model.body(x)).sum().backward()
        optimizer.step()


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("pin_eval", [True, False], ids=["pinned", "held"])
@pytest.mark.parametrize(
    ("make", "names", "buffers"),
    [
        pytest.param(
            lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
            {"body.bias", "body.parametrizations.weight.original"},
            {"body.parametrizations.weight.0._u", "body.parametrizations.weight.0._v"},
            id="spectral_norm-parametrization",
        ),
        pytest.param(
            lambda: old_spectral_norm(nn.Linear(4, 4)),
            {"body.bias", "body.weight_orig"},
            {"body.weight_u", "body.weight_v"},
            id="spectral_norm-hook",
        ),
        pytest.param(
            lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
            {"body.bias"} | {f"body.parametrizations.weight.original{n}" for n in (0, 1)},
            set(),
            id="weight_norm-parametrization",
        ),
        pytest.param(
            lambda: old_weight_norm(nn.Linear(4, 4)),
            {"body.bias", "body.weight_g", "body.weight_v"},
            set(),
            id="weight_norm-hook",
        ),
        pytest.param(
            parametrized,
            {"body.bias", "body.parametrizations.weight.original"},
            set(),
            id="own-parametrization",
        ),
        pytest.param(
            lambda: prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5),
            {"body.bias", "body.weight_orig"},
            {"body.weight_mask"},
            id="pruning",
        ),
    ],
)
def test_reparametrized_layers_hold(make, names, buffers, pin_eval):
    model = beside_a_head(make())
    keys = list(model.state_dict())
    frozen = fl.freeze(model, "body", pin_eval=pin_eval)
    train(model)
    _ = model.body.weight  # reading it runs the parametrization
    assert set(frozen.names) == names
    assert set(frozen.buffers) == buffers
    assert frozen.verify().ok
    assert list(model.state_dict()) == keys
    frozen.undo()
    train(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("freeze", [fl.freeze, lambda m, w: fl.freeze_rows(m, w, [0])])
def test_an_embedding_that_renormalises_itself_is_refused(kind, freeze):
    model = beside_a_head(kind(4, 4, max_norm=1.0))
    with pytest.raises(fl.PlanError, match=r"body\.weight .*max_norm=1\.0.*body\.max_norm = None"):
        freeze(model, "body")
    assert model.body.weight.requires_grad
    model.body.max_norm = None
    freeze(model, "body")


def quantized_aware() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight_fake_quant = quantization.FakeQuantize()
    return layer


def test_a_fake_quantize_that_observes_is_refused_in_a_frozen_part_only():
    model = beside_a_head(quantized_aware())
    model.head.fake = quantization.FakeQuantize()
    with pytest.raises(fl.PlanError, match=r"body\.weight_fake_quant is a FakeQuantize whose obs"):
        fl.freeze(model, "body")
    fl.freeze(model, "body", hold_statistics=False).undo()
    quantization.disable_observer(model.body.weight_fake_quant)
    frozen = fl.freeze(model, "body")
    model.body.weight_fake_quant(torch.randn(3, 4))
    model.head.fake(torch.randn(3, 4))
    assert frozen.verify().buffers > 0


@pytest.mark.parametrize(
    "observer", [quantization.MinMaxObserver, quantization.MovingAverageMinMaxObserver]
)
def test_observers_see_no_more_in_a_frozen_part(observer):
    model = beside_a_head(nn.Sequential(nn.Linear(4, 4), observer()))
    model.body(torch.randn(5, 4))
    frozen = fl.freeze(model, "body")
    model.eval()
    model.body(100 * torch.randn(5, 4))
    assert frozen.verify().buffers > 0
    frozen.undo()
    low = model.body[1].min_val.clone()
    model.body(100 * torch.randn(5, 4))
    assert model.body[1].min_val < low


def test_int8_parameters_are_frozen_and_a_train_rule_leaves_them():
    model = beside_a_head(nn.Linear(4, 4))
    model.body.packed = nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)
    frozen = fl.freeze(model, all_but="head")
    assert "body.packed" in frozen.names
    thawed = fl.unfreeze(model, "body")
    assert [model.body.packed.requires_grad, model.body.weight.requires_grad] == [False, True]
    thawed.undo()
    model.body.packed[0] = 3
    with pytest.raises(fl.FrozenChangedError, match=r"body\.packed: 1 of 4 elements"):
        frozen.verify()


def test_training_int8_alone_is_training_nothing():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "packed": nn.Module()})
    model.packed.weight = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(fl.PlanError, match="nothing to train"):
        fl.freeze(model, all_but="packed")
