"""Trained stems, kept state, rates that come back, inference mode inside, compiled containers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers

import frostline as fl


def found(*args: Any, **kwargs: Any) -> list[tuple[str, str]]:
    return [(finding.code, finding.where) for finding in fl.check(*args, **kwargs)]


def stemmed() -> nn.Sequential:
    stem = nn.Sequential(nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16))
    body = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(10)))
    return nn.Sequential(OrderedDict(stem=stem, body=body, head=nn.Linear(16, 2)))


def test_a_trained_stem_before_a_frozen_body() -> None:
    model = stemmed()
    fl.freeze(model, "body")
    (measured,) = fl.check(model, example=torch.randn(64, 16))
    assert (measured.code, measured.where) == ("FL501", "stem.0.weight")
    assert measured.severity == "warning"
    assert "trains, like 2 more, and lies ahead of 20 frozen tensors" in measured.message
    assert found(model) == [("FL501", "stem.0.weight")]
    fl.freeze(model, "stem")
    assert found(model, example=torch.randn(64, 16)) == []


def stepped_adam(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def test_state_kept_on_purpose() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = stepped_adam(model)
    fl.freeze(model, "0")
    assert found(model, optimizer) == [("FL202", "0.weight"), ("FL202", "0.bias")]
    optimizer.param_groups[0]["kept_names"] = ["0.weight"]
    assert found(model, optimizer) == [("FL202", "0.bias")]
    optimizer.param_groups[0]["kept_names"].append("0.bias")
    assert found(model, optimizer) == []


def in_two_groups(first: float) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    groups = [
        {"params": model[0].parameters(), "lr": first},
        {"params": model[1].parameters(), "lr": 0.1},
    ]
    return model, torch.optim.SGD(groups)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda o: schedulers.CosineAnnealingLR(o, 9, eta_min=0.01), id="cosine"),
        pytest.param(lambda o: schedulers.CyclicLR(o, [0.0, 0.1], 0.2), id="cyclic"),
    ],
)
def test_a_zero_rate_that_the_scheduler_raises(build: Callable[..., Any]) -> None:
    model, optimizer = in_two_groups(0.0)
    scheduler = build(optimizer)
    (finding,) = fl.check(model, optimizer, scheduler)
    assert (finding.code, finding.where) == ("FL205", "optimizer.param_groups[0]")
    assert f"and {type(scheduler).__name__} raises the rate again" in finding.message
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] > 0


def test_a_rate_set_to_zero_behind_the_scheduler() -> None:
    model, optimizer = in_two_groups(0.1)
    scheduler = schedulers.OneCycleLR(optimizer, 0.1, total_steps=9)
    assert found(model, optimizer, scheduler) == []
    optimizer.param_groups[0]["lr"] = 0.0
    (finding,) = fl.check(model, optimizer, scheduler)
    assert (finding.code, finding.where) == ("FL205", "optimizer.param_groups[0]")
    assert "OneCycleLR raises" in finding.message


def test_a_schedule_that_ends_at_zero() -> None:
    model, optimizer = in_two_groups(0.1)
    parts = [
        schedulers.LinearLR(optimizer, total_iters=2),
        schedulers.CosineAnnealingLR(optimizer, 2),
    ]
    scheduler = schedulers.SequentialLR(optimizer, parts, [2])
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0
    assert found(model, optimizer, scheduler) == []


class Around(nn.Module):
    """Runs its backbone under a context of the caller's choice."""

    def __init__(self, context: Callable[[], Any]) -> None:
        super().__init__()
        self.context = context
        self.backbone, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.backbone.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            x = self.backbone(x)
        return self.head(x)


class Features(nn.Linear):
    """Computes under inference mode without calling another module."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def behind_features() -> nn.Module:
    model = nn.Sequential(Features(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("build", "where"),
    [
        pytest.param(lambda: Around(torch.inference_mode), "Around", id="the root"),
        pytest.param(lambda: nn.Sequential(Around(torch.inference_mode)), "0", id="a block"),
        pytest.param(behind_features, "0", id="a leaf"),
        pytest.param(lambda: Features(4, 2), "Features", id="the output itself"),
    ],
)
def test_inference_mode_inside_forward(build: Callable[[], nn.Module], where: str) -> None:
    (finding,) = fl.check(build(), example=torch.randn(3, 4))
    assert (finding.code, finding.where) == ("FL405", where)
    assert "torch.no_grad()" in finding.fix


def test_no_grad_inside_forward() -> None:
    assert found(Around(torch.no_grad), example=torch.randn(3, 4)) == []


@pytest.fixture
def two_compilations() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2):
        yield
    torch._dynamo.reset()


class Net(nn.Module):
    """Three layers and a forward that torch did not write."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def three_layers() -> nn.Module:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))


def in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


@pytest.mark.usefixtures("two_compilations")
@pytest.mark.parametrize(
    ("build", "where"),
    [
        pytest.param(
            lambda: torch.compile(three_layers(), backend="eager"), "Sequential", id="container"
        ),
        pytest.param(lambda: in_place(Net()), "Net", id="own class in place"),
    ],
)
def test_the_recompile_limit(build: Callable[[], nn.Module], where: str) -> None:
    model = build()
    parameters = list(model.parameters())
    for phase in range(2):
        assert found(model) == []
        for number, parameter in enumerate(parameters):
            parameter.requires_grad_(number >= phase)
        model(torch.randn(2, 4))
    assert found(model) == [("FL603", where)]
    # The next container finds the limit used up, and torch never compiles one in place.
    assert found(torch.compile(Net(), backend="eager")) == found(model) * (where == "Net")
    assert found(in_place(three_layers())) == []
