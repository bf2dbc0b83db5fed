"""What ``fl.check`` names in modules whose values move, each fault shown to be there."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from faults import codes, moved, net, normed, step
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.nn.utils.parametrizations import spectral_norm

import frostline as fl


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        pytest.param(lambda: nn.BatchNorm1d(4), (3, 4), id="BatchNorm1d"),
        pytest.param(lambda: nn.BatchNorm2d(4), (3, 4, 2, 2), id="BatchNorm2d"),
        pytest.param(lambda: nn.BatchNorm3d(4), (3, 4, 2, 2, 2), id="BatchNorm3d"),
        pytest.param(lambda: nn.BatchNorm1d(4, affine=False), (3, 4), id="no affine"),
        pytest.param(
            lambda: nn.InstanceNorm2d(4, track_running_stats=True), (3, 4, 2, 2), id="InstanceNorm"
        ),
    ],
)
def test_batchnorm_buffers(norm: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    body = nn.Sequential(nn.Identity(), norm())
    body.anchor = nn.Linear(1, 1)
    model = nn.ModuleDict({"body": body, "head": nn.Linear(4, 2)})
    body.requires_grad_(False)
    assert [(f.code, f.where) for f in fl.check(model)] == [("FL102", "body.1")]
    with torch.no_grad():
        assert moved(body[1].running_mean, lambda: body[1](torch.randn(shape)))


def test_sync_batchnorm_buffers() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(normed())
    model[:2].requires_grad_(False)
    assert codes(model) == {"FL102"}


def test_eval_alone_leaves_the_affine_trainable() -> None:
    model = normed()
    model[1].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert [(f.code, f.where) for f in fl.check(model, optimizer)] == [("FL109", "1")]
    assert moved(model[1].bias, lambda: step(model, optimizer))


@pytest.mark.parametrize("style", ["parametrization", "hook"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated")
def test_spectral_norm_vectors(style: str) -> None:
    wrap = spectral_norm if style == "parametrization" else torch.nn.utils.spectral_norm
    model = nn.Sequential(wrap(nn.Linear(8, 4)), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    assert codes(model) == {"FL105"}
    vector = next(model[0].buffers())
    assert moved(vector, lambda: model(torch.randn(3, 8)))


def test_moving_average_codebooks() -> None:
    class Codebook(nn.Linear):
        def __init__(self) -> None:
            super().__init__(8, 4)
            self.register_buffer("average", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            self.average = self.average * 0.9 + x.detach().mean(0) * 0.1
            return x

    model = nn.Sequential(Codebook(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    findings = fl.check(model, example=torch.randn(3, 8))
    assert [(f.code, f.where) for f in findings] == [("FL110", "0.average")]


def test_embedding_with_max_norm() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=0.1), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model.eval()
    assert codes(model) == {"FL107"}
    with torch.no_grad():
        assert moved(model[0].weight, lambda: model(torch.arange(5)))


def test_fake_quantize_observers() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 4), FakeQuantize()), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model[0].eval()
    assert [(f.code, f.where) for f in fl.check(model)] == [("FL106", "0.1")]
    assert moved(model[0][1].scale, lambda: model(torch.randn(3, 8)))


def test_model_train_puts_frozen_modules_back_in_train_mode() -> None:
    model = normed()
    model[:2].requires_grad_(False).eval()
    assert [(f.code, f.where) for f in fl.check(model)] == [("FL103", "1")]
    assert codes(model.train()) == {"FL102"}
    model = normed()
    frozen = fl.freeze(model, all_but="2")
    assert codes(copy.deepcopy(model.train())) == set()
    frozen.verify()


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(lambda: nn.Dropout(0.5), id="dropout"),
        pytest.param(lambda: nn.AlphaDropout(0.5), id="alpha dropout"),
        pytest.param(lambda: nn.RReLU(), id="RReLU"),
        pytest.param(lambda: DropPath(0.5), id="drop path"),
    ],
)
def test_dropout_in_the_frozen_part(noise: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 64), noise()), nn.Linear(64, 2))
    model[0].requires_grad_(False)
    x = torch.randn(64, 8)
    assert not torch.equal(model[0](x), model[0](x))
    findings = fl.check(model, example=x)
    assert [(f.code, f.where) for f in findings] == [("FL104", "0.1")]


class DropPath(nn.Module):
    """As in timm: drops whole samples."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.rand(len(x), 1) > self.drop_prob if self.training else torch.ones(len(x), 1)
        return x * keep


def test_functional_dropout_follows_the_outer_module() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(8, 64), nn.Linear(64, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(F.dropout(self.one(x), 0.5, self.training)))

    model = Outer()
    frozen = fl.freeze(model, all_but="head")
    findings = fl.check(model, example=torch.randn(3, 8))
    assert [(f.code, f.where) for f in findings] == [("FL111", "two")]
    frozen.undo()


@pytest.mark.parametrize("rows", [slice(0, 2), slice(None)], ids=["some rows", "all rows"])
def test_rows_frozen_by_a_gradient_mask(rows: slice) -> None:
    model = net()
    weight = model[0].weight
    mask = torch.ones_like(weight)
    mask[rows] = 0
    weight.register_hook(lambda gradient: gradient * mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    findings = fl.check(model, optimizer, example=torch.randn(3, 8))
    assert [(f.code, f.where) for f in findings] == [("FL503", "0.weight")]
    assert moved(weight[:2], lambda: step(model, optimizer))


def test_rows_frozen_by_frostline_are_no_finding() -> None:
    model = net()
    fl.freeze_rows(model, "0.weight", slice(0, 2))
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1)
    assert codes(model, optimizer, example=torch.randn(3, 8)) == set()


def test_two_parameters_on_one_storage() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.data)
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    assert [(f.code, f.where) for f in fl.check(model, optimizer)] == [("FL402", "0.weight")]
    model(torch.randn(3, 4)).sum().backward()
    assert moved(model[0].weight, optimizer.step)


def test_a_parents_requires_grad_thaws_the_child() -> None:
    model = net()
    frozen = fl.freeze(model, "0")
    model.requires_grad_()
    assert [(f.code, f.where) for f in fl.check(model)] == [
        ("FL108", "0.weight"),
        ("FL108", "0.bias"),
    ]
    assert {f.where for f in fl.check(copy.deepcopy(model))} == {"0.weight", "0.bias"}
    frozen.undo()
    assert fl.check(model) == []


@pytest.mark.parametrize("name", ["requires_grad", "require_grad", "requires_gradient"])
def test_typos_that_freeze_nothing(name: str) -> None:
    model = net()
    setattr(model[0], name, False)
    assert [(f.code, f.where) for f in fl.check(model)] == [("FL403", "0")]
    model = net()
    if name != "requires_grad":
        setattr(model[0].weight, name, False)
        assert [(f.code, f.where) for f in fl.check(model)] == [("FL403", "0.weight")]
