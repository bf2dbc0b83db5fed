"""Frozen values that still move: what a freeze prevents, refuses, or names in its proof."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.optim.swa_utils import update_bn

import frostline as fl


class DropPath(nn.Module):
    """Stochastic depth, as timm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.empty(len(x), 1).bernoulli_(0.5) if self.training else x


class Net(nn.Module):
    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), middle or nn.Identity())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, zero: bool = True) -> None:
    model.train()
    nn.functional.cross_entropy(model(torch.randn(6, 4)), torch.arange(6) % 3).backward()
    optimizer.step()
    if zero:
        optimizer.zero_grad(set_to_none=False)


OPTIMIZERS = {
    "SGD-decay": lambda ps: torch.optim.SGD(ps, lr=0.1, weight_decay=0.1),
    "SGD-momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=0.1),
    "RMSprop-momentum": lambda ps: torch.optim.RMSprop(ps, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_frozen_mid_training_then_zero_grad_set_to_none_false(build):
    model = Net()
    optimizer = build(model.parameters())
    step(model, optimizer)
    assert model.body[0].weight.grad is not None  # zeros, which decay and momentum act upon
    frozen = fl.freeze(model, "body")
    assert model.body[0].weight.grad is None
    for _ in range(3):
        step(model, optimizer)
    assert frozen.verify().parameters == 2


def test_frozen_while_gradients_pend():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(6, 4)).sum().backward()
    with pytest.raises(fl.TransitionError, match=r"body\.0\.weight has a gradient"):
        fl.freeze(model, "body")
    assert model.body[0].weight.requires_grad
    assert model.body[0].weight.grad is not None
    frozen = fl.freeze(model, "body", gradients="drop")
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()
    assert frozen.verify().ok


def test_frozen_while_gradients_pend_in_a_step_hook():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: fl.freeze(model, "body") and None)
    with pytest.raises(fl.TransitionError):
        step(model, optimizer)


def test_a_thaw_with_gradients_pending_is_refused_too():
    model = Net()
    fl.freeze(model, "body")
    model(torch.randn(6, 4)).sum().backward()
    with pytest.raises(fl.TransitionError):
        fl.unfreeze(model, "body")
    assert not model.body[0].weight.requires_grad


def test_stale_frozen_grad_inflates_clip_grad_norm():
    model = Net()
    model.body[0].weight.grad = torch.ones(4, 4)
    fl.freeze(model, "body", gradients="drop")
    for p in model.head.parameters():
        p.grad = torch.zeros_like(p)
    assert clip_grad_norm_(model.parameters(), 1.0) == 0


NORMS = {
    "BatchNorm": lambda: nn.BatchNorm1d(4),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
}


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_batchnorm_buffers(make, context):
    model = Net(make())
    frozen = fl.freeze(model, "body")
    model.train()
    with context():
        first = model(torch.ones(6, 4))
        model(torch.randn(6, 4) + 5)
        assert torch.equal(model(torch.ones(6, 4)), first)
    assert frozen.verify().buffers == 3
    assert not model.body[1].weight.requires_grad


class Codebook(nn.Module):
    """Moves its buffer in train mode, as VQ codebooks do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.codes.lerp_(x.detach().mean(0), 0.1)
        return x + self.codes


@pytest.mark.parametrize(
    ("module", "read"),
    [
        pytest.param(
            nn.InstanceNorm1d(4, track_running_stats=True),
            lambda m, x: m(x.unsqueeze(-1).expand(-1, -1, 3)),
            id="InstanceNorm",
        ),
        pytest.param(spectral_norm(nn.Linear(4, 4)), lambda m, x: m.weight, id="spectral_norm"),
        pytest.param(Codebook(), lambda m, x: m(x), id="codebook"),
    ],
)
def test_instancenorm_syncbn_spectral_norm_codebooks(module, read):
    model = Net(module)
    frozen = fl.freeze(model, "body")
    model.train()
    for _ in range(3):
        read(model.body[1], torch.randn(6, 4) + 1)
    assert frozen.verify().buffers > 0


def test_embedding_max_norm():
    model = nn.ModuleDict({"embed": nn.Embedding(4, 4, max_norm=0.1), "head": nn.Linear(4, 3)})
    with pytest.raises(fl.PlanError, match=r"max_norm=0\.1"):
        fl.freeze(model, "embed")


def test_fakequantize_observers():
    model = Net(quantization.FakeQuantize())
    with pytest.raises(fl.PlanError, match="disable_observer"):
        fl.freeze(model, "body")


def test_update_bn_is_named():
    model = Net(nn.BatchNorm1d(4))
    model(torch.randn(6, 4))
    frozen = fl.freeze(model, "body")
    update_bn([torch.randn(6, 4)], model)
    with pytest.raises(fl.FrozenChangedError, match=r"body\.1\.running_mean"):
        frozen.verify()


def test_model_train_puts_frozen_modules_back():
    model = Net(nn.BatchNorm1d(4))
    fl.freeze(model, "body")
    model.train()
    model(torch.randn(6, 4))
    assert [model.body.training, model.body[1].training, model.head.training] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("noise", [nn.Dropout(0.5), DropPath(), nn.RReLU()])
def test_dropout_drop_path_rrelu_in_the_frozen_part(noise):
    model = Net(noise)
    fl.freeze(model, "body")
    model.train()
    x = torch.randn(64, 4)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.AdamW([p], lr=0.1),
        lambda p: torch.optim.SGD([p], lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.Muon([p], lr=0.1, weight_decay=0.1),
    ],
    ids=["AdamW", "SGD-decay", "Muon"],
)
def test_some_rows_of_a_tensor(build):
    model = Net()
    before = model.head.weight.detach().clone()
    frozen = fl.freeze_rows(model, "head.weight", [0, 2])
    optimizer = build(model.head.weight)
    for _ in range(5):
        step(model, optimizer)
    assert torch.equal(model.head.weight[[0, 2]], before[[0, 2]])
    assert (model.head.weight[1] != before[1]).all()
    assert frozen.verify().ok


def test_tied_weights():
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "lm_head": nn.Linear(4, 6, bias=False)})
    model.lm_head.weight = model.embed.weight
    assert fl.select(model, "lm_head").names == ("embed.weight",)
    with pytest.raises(fl.PlanError, match="nothing to train"):
        fl.freeze(model, "embed")
    model.lm_head.weight = nn.Parameter(model.embed.weight.data)  # two parameters, one storage
    with pytest.raises(fl.PlanError, match="nothing to train"):
        fl.freeze(model, "embed")


def test_a_parents_requires_grad_thaws_the_child():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    frozen = fl.freeze(model, "body")
    model.requires_grad_()
    step(model, optimizer)
    with pytest.raises(fl.FrozenChangedError, match="requires_grad is True again"):
        frozen.verify()


@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_load_state_dict(assign):
    model = Net()
    frozen = fl.freeze(model, "body")
    model.load_state_dict(Net().state_dict(), assign=assign)
    with pytest.raises(fl.FrozenChangedError, match="load_state_dict"):
        frozen.verify()


def by_data(model: nn.Module) -> None:
    model.body[0].weight.data += 1


def by_numpy(model: nn.Module) -> None:
    model.body[0].weight.detach().numpy()[0, 0] += 1


def by_vector(model: nn.Module) -> None:
    vector_to_parameters(parameters_to_vector(model.parameters()) + 1, model.parameters())


@pytest.mark.parametrize("write", [by_data, by_numpy, by_vector])
def test_data_numpy_views_vector_to_parameters(write):
    model = Net()
    frozen = fl.freeze(model, "body")
    write(model)
    with pytest.raises(fl.FrozenChangedError, match=r"body\.0\.weight"):
        frozen.verify()


def test_lazy_modules_int8_parameters_and_names_of_weight_norm():
    with pytest.raises(fl.PlanError, match="lazy module"):
        fl.freeze(nn.ModuleDict({"body": nn.LazyLinear(4), "head": nn.Linear(4, 2)}), "body")
    model = Net(weight_norm(nn.Linear(4, 4)))
    with pytest.raises(fl.SelectorError, match=r"'body\.1\.weight' matches none"):
        fl.freeze(model, "body.1.weight")
    assert len(fl.freeze(model, "body.1").names) == 3
    model.body[0] = nn.Module()
    model.body[0].weight = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    assert "body.0.weight" in fl.freeze(model, all_but="head").names


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_transformer_encoders_fast_path_zeroes_padded_positions():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.ModuleDict({"body": nn.TransformerEncoder(layer, 1), "head": nn.Linear(4, 3)})
    fl.freeze(model, "body")
    padded = torch.tensor([[False, False, True], [False, False, False]])
    assert model.body(torch.randn(2, 3, 4), src_key_padding_mask=padded)[0, 2].all()
