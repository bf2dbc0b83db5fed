"""What looks like a fault and is none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.nn.utils.parametrizations import spectral_norm

import frostline as fl


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def codes(*args: Any, **kwargs: Any) -> set[str]:
    return {finding.code for finding in fl.check(*args, **kwargs)}


def test_a_warm_up_that_starts_at_zero() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch / 10)
    assert optimizer.param_groups[0]["lr"] == 0
    assert codes(model, optimizer, scheduler) == set()


def test_a_rate_of_zero_where_all_is_frozen() -> None:
    model = net()
    frozen = fl.freeze(model, "0")
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[1:].parameters()}]
    assert codes(model, torch.optim.SGD(groups, lr=0.1)) == set()
    frozen.undo()


def test_an_optimizer_that_also_steps_a_loss() -> None:
    model, loss = net(), nn.Linear(4, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    assert codes(model, optimizer) == set()
    # A stranger of another shape explains no missing parameter.
    partial = torch.optim.SGD([*model[:2].parameters(), nn.Parameter(torch.ones(9))], lr=0.1)
    assert codes(model, partial) == {"FL201"}


def test_several_optimizers_share_the_model() -> None:
    model = net()
    one = torch.optim.SGD(model[:2].parameters(), lr=0.1)
    two = torch.optim.AdamW(model[2].parameters(), lr=0.1)
    assert codes(model, [one, two]) == set()
    assert codes(model, one) == {"FL201"}


def test_a_train_method_that_keeps_eval() -> None:
    class Backbone(nn.Sequential):
        def train(self, mode: bool = True) -> Backbone:
            return super().train(False)

    model = nn.ModuleDict({"body": Backbone(nn.Linear(8, 4), nn.BatchNorm1d(4))})
    model["head"] = nn.Linear(4, 2)
    model["body"].requires_grad_(False)
    model.train()
    assert codes(model) == set()


def test_a_frozen_batchnorm_class_never_updates() -> None:
    class FrozenBatchNorm2d(nn.BatchNorm2d):
        pass

    model = nn.Sequential(FrozenBatchNorm2d(2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert codes(model) == set()


def test_a_model_in_eval_mode_is_not_training() -> None:
    assert codes(net().eval()) == set()


def test_statistics_pinned_on_request_while_the_scales_train() -> None:
    model = net()
    fl.freeze(model, "0", pin_eval="1")
    assert codes(model, example=torch.randn(3, 8)) == set()


def test_buffers_that_a_freeze_puts_back() -> None:
    model = net()
    fl.freeze(model, all_but="2", pin_eval=False)
    model.train()
    assert codes(model, example=torch.randn(3, 8)) == set()


def test_dropout_shared_with_a_part_that_trains() -> None:
    drop = nn.Dropout(0.5)
    model = nn.Sequential()
    model.body = nn.Sequential(nn.Linear(8, 8), drop)
    model.head = nn.Sequential(nn.Linear(8, 8), drop)
    fl.freeze(model, "body")
    assert codes(model, example=torch.randn(3, 8)) == set()


def test_a_dropout_that_is_on_ahead_of_what_is_frozen() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 4), nn.Linear(4, 2))
    fl.freeze(model, "1")
    assert codes(model, example=torch.randn(3, 8)) == set()


def quantised() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), FakeQuantize())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), "FL102", id="norm"),
        pytest.param(lambda: spectral_norm(nn.Linear(8, 4)), "FL105", id="spectral norm"),
        pytest.param(quantised, "FL106", id="observer"),
    ],
)
def test_a_probe_does_not_repeat_what_is_known(body: Any, code: str) -> None:
    model = nn.Sequential(body(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    assert codes(model, example=torch.randn(3, 8)) == {code}


def test_declared_groups_with_decay() -> None:
    model = net()
    fl.freeze(model, all_but="2")
    declared = fl.optimizer(
        torch.optim.SGD, model, lr=0.1, momentum=0.9, weight_decay=0.1, declare_all=True
    )
    assert codes(model, declared) == set()
    by_hand = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    assert codes(model, by_hand) == {"FL204"}
    plain = torch.optim.Adam(model.parameters(), lr=0.1)
    assert codes(model, plain) == set()


@pytest.mark.parametrize(
    ("frozen", "is_suspicious"),
    [
        pytest.param({1, 10, 11}, True, id="what a prefix matches"),
        pytest.param({1}, False, id="one"),
        pytest.param({10, 11}, False, id="the last two"),
        pytest.param({0, 1, 2}, False, id="the first three"),
        pytest.param({1, 10}, False, id="not all that a prefix would match"),
        pytest.param(set(range(12)), False, id="all"),
    ],
)
def test_numbered_neighbours(frozen: set[int], is_suspicious: bool) -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(12))})
    model["head"] = nn.Linear(2, 2)
    for number in frozen:
        model["layers"][number].requires_grad_(False)
    suspects = [f for f in fl.check(model) if f.code == "FL404"]
    assert [f.where for f in suspects] == (["layers.1"] if is_suspicious else [])


@pytest.mark.parametrize(
    ("select", "is_cut"),
    [
        pytest.param("re:layer1", True, id="regex"),
        pytest.param(r"re:layer1\.", False, id="regex with an end"),
        pytest.param("layer1*.**", True, id="glob"),
        pytest.param("layer1.**", False, id="glob of one layer"),
        pytest.param("layer1", False, id="whole components"),
        pytest.param(["head", "re:layer1"], True, id="one of several"),
        pytest.param("re:layer1[0-2]", False, id="whole numbers only"),
    ],
)
def test_patterns_in_a_plan(select: Any, is_cut: bool) -> None:
    model = nn.ModuleDict({f"layer{n}": nn.Linear(2, 2) for n in range(1, 13)})
    model["head"] = nn.Linear(2, 2)
    plan = fl.Plan.freezing(select)
    fl.freeze(model, plan)
    assert codes(model, plan=plan) == ({"FL411"} if is_cut else set())


def test_a_plan_that_does_not_fit_the_model() -> None:
    (finding,) = fl.check(net(), plan=fl.Plan.freezing("backbone"))
    assert (finding.code, finding.where) == ("FL409", "plan")
    assert "'backbone' matches none" in finding.message


def test_rules_that_override_in_part() -> None:
    model = net()
    plan = fl.Plan.all_but("2")
    fl.freeze(model, plan)
    assert codes(model, plan=plan) == set()


def test_names_taken_from_a_part_of_the_model() -> None:
    model = net()
    fl.freeze(model, "0")
    optimizer = fl.optimizer(torch.optim.SGD, model[1:], lr=0.1)
    assert optimizer.param_groups[0]["param_names"] != ["1.weight"]
    copied = copy.deepcopy(model)
    assert codes(copied) == set()


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_are_looked_through(wrap: Any) -> None:
    model = net()
    wrapped = wrap(model)
    frozen = fl.freeze(wrapped, all_but="2")
    optimizer = fl.optimizer(torch.optim.AdamW, wrapped, lr=0.1)
    assert codes(wrapped, optimizer, example=torch.randn(3, 8)) == set()
    frozen.undo()
    model[:2].requires_grad_(False)
    assert [(f.code, f.where) for f in fl.check(wrapped)] == [("FL102", "1")]


class Output:
    """Like an output of transformers, with its loss on it."""

    def __init__(self, logits: Tensor, unused: Tensor) -> None:
        self.logits, self.loss = logits, logits.square().mean()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.aside = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor, kind: str = "tensor") -> Any:
        one, two = self.body(x), self.aside(x)
        forms = {"tensor": one, "tuple": (one, [two]), "dict": {"a": one, "b": two}}
        return Output(one, two) if kind == "object" else forms[kind]


@pytest.mark.parametrize(
    ("example", "loss", "unreached"),
    [
        pytest.param(torch.ones(3, 4), None, True, id="tensor"),
        pytest.param((torch.ones(3, 4), "tuple"), None, False, id="tuple of all"),
        pytest.param({"x": torch.ones(3, 4), "kind": "dict"}, None, False, id="dict of all"),
        pytest.param([torch.ones(3, 4), "object"], None, True, id="own loss"),
        pytest.param((torch.ones(3, 4), "tuple"), lambda out: out[0].sum(), True, id="loss of one"),
    ],
)
def test_batches_outputs_and_losses(example: Any, loss: Any, unreached: bool) -> None:
    findings = fl.check(Model(), example=example, loss=loss)
    expected = [("FL210", "aside.weight"), ("FL210", "aside.bias")] if unreached else []
    assert [(f.code, f.where) for f in findings] == expected


def test_an_output_without_numbers_needs_a_loss() -> None:
    class Says(nn.Linear):
        def forward(self, x: Tensor) -> str:  # type: ignore[override]
            return "nothing"

    (finding,) = fl.check(Says(2, 2), example=torch.ones(1, 2))
    assert finding.code == "FL001"
    assert "pass loss=" in finding.message


def test_a_model_without_parameters() -> None:
    assert fl.check(nn.Sequential(nn.ReLU(), nn.Dropout()), example=torch.ones(2)) == []
