"""Modules with ways of their own: held still all the same, or refused by name."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import parametrize as parametrize
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import frostline as fl


def beside_a_head(body: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"body": body, "head": nn.Linear(4, 2)})


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


class Lora(nn.Module):
    """An adapter over a layer, in PEFT's manner and with its names."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.5)})
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        low = self.lora_A["default"](self.lora_dropout["default"](x))
        return self.base_layer(x) + self.lora_B["default"](low)

    def merge(self) -> None:
        delta = self.lora_B["default"].weight @ self.lora_A["default"].weight
        self.base_layer.weight.data += delta


class SavedBeside(nn.Module):
    """PEFT's modules_to_save: a second copy that trains in place of the original."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original_module = original
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(original)})

    def forward(self, x: Tensor) -> Tensor:
        return self.modules_to_save["default"](x)


def adapted() -> nn.Module:
    """As PEFT leaves a model: everything below ``base_model.model``."""
    inner = nn.ModuleDict({"proj": Lora(nn.Linear(4, 4)), "head": SavedBeside(nn.Linear(4, 2))})
    peft = nn.Module()
    peft.base_model = nn.Module()
    peft.base_model.model = inner
    return peft


def test_adapters_train_over_a_frozen_base():
    model = adapted()
    inner = model.base_model.model
    frozen = fl.freeze(model, all_but=["lora_A", "lora_B", "modules_to_save"])
    assert frozen.names == (
        "base_model.model.proj.base_layer.weight",
        "base_model.model.proj.base_layer.bias",
        "base_model.model.head.original_module.weight",
        "base_model.model.head.original_module.bias",
    )
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1)
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        inner.head(inner.proj(torch.randn(5, 4))).sum().backward()
        optimizer.step()
    # The adapter's dropout belongs to what trains; the base is at rest.
    assert inner.proj.lora_dropout["default"].training
    assert not inner.proj.base_layer.training
    assert frozen.verify().ok
    inner.proj.merge()
    with pytest.raises(fl.FrozenChangedError, match=r"proj\.base_layer\.weight: 16 of 16"):
        frozen.verify()


def test_by_name_an_adapted_layer_is_base_and_adapter():
    model = adapted()
    assert len(fl.select(model, "proj").names) == 4
    assert len(fl.select(model, "proj.base_layer").names) == 2
    assert len(fl.select(model, "head").names) == 4  # the original and the copy that trains


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
