"""What ``fl.check`` names in gradients and optimizers, each fault shown to be there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from faults import backward, codes, moved, net, step
from torch import nn

import frostline as fl


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_frozen_mid_training_then_zero_grad_to_zeros(cls: type[torch.optim.Optimizer]) -> None:
    model = net()
    optimizer = cls(model.parameters(), lr=0.1, weight_decay=0.1)  # type: ignore[call-arg]
    step(model, optimizer)
    optimizer.zero_grad(set_to_none=False)
    backward(model)
    model[0].requires_grad_(False)
    optimizer.zero_grad(set_to_none=False)
    assert "FL101" in codes(model, optimizer)
    assert moved(model[0].weight, lambda: step_of_zeros(model, optimizer))


def step_of_zeros(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(model)
    optimizer.step()


def test_frozen_while_gradients_pend() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    model[0].requires_grad_(False)
    assert codes(model, optimizer) == {"FL101"}
    assert moved(model[0].weight, optimizer.step)


def test_stale_gradient_inflates_clipping() -> None:
    model = net()
    backward(model)
    model[0].requires_grad_(False)
    with_it = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    without = torch.nn.utils.clip_grad_norm_(model[2].parameters(), 1e9)
    assert with_it > without
    assert codes(model, torch.optim.SGD(model[2].parameters(), lr=0.1)) == {"FL101"}


def test_way_two_backbone_left_out_of_the_optimizer() -> None:
    model = net()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    step(model, optimizer)
    assert model[0].weight.grad is not None
    assert [f.where for f in fl.check(model, optimizer)] == ["0.weight", "0.bias"]
    assert codes(model, optimizer) == {"FL201"}


class DecayingMuon(torch.optim.Optimizer):
    """Fills a missing gradient with zeros, then decays; takes its options from its groups."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            assert set(group) <= {"params", "lr", "weight_decay", "initial_lr"}
        super().__init__(groups, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.data.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.data.add_(parameter.grad, alpha=-group["lr"])


def test_optimizers_that_write_although_grad_is_none() -> None:
    model = net()
    model[0].requires_grad_(False)
    muon = DecayingMuon([{"params": list(model.parameters()), "lr": 0.1, "weight_decay": 0.1}])
    assert codes(model, muon) == {"FL203"}
    assert moved(model[0].weight, lambda: step(model, muon))
    model = net()
    lbfgs = torch.optim.LBFGS(model.parameters())
    step(model, lbfgs)
    model[0].requires_grad_(False)
    assert "FL203" in codes(model, lbfgs)


class Swapping(torch.optim.SGD):
    """Schedule-free in miniature: ``eval`` moves the weights towards an average in its state."""

    def eval(self) -> None:
        for parameter, state in self.state.items():
            parameter.data.lerp_(state["momentum_buffer"], 0.5)


def test_optimizers_that_swap_weights() -> None:
    model = net()
    optimizer = Swapping(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    model[0].requires_grad_(False)
    assert codes(model, optimizer) == {"FL202"}
    assert moved(model[0].weight, optimizer.eval)


def test_zero_learning_rate_as_a_freeze() -> None:
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    optimizer = torch.optim.Rprop(groups, lr=0.1)
    assert codes(model, optimizer) == {"FL205"}
    step(model, optimizer)
    assert moved(model[0].weight, lambda: step(model, optimizer))
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}], lr=0.1
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4, eta_min=0.01)
    step(model, optimizer)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] > 0
    assert codes(model, optimizer, scheduler) == {"FL205"}


@pytest.mark.parametrize("named", [True, False], ids=["groups with names", "without"])
def test_load_state_dict_with_assign(named: bool) -> None:
    model = net()
    optimizer = (
        fl.optimizer(torch.optim.SGD, model, lr=0.1)
        if named
        else torch.optim.SGD(model.parameters(), lr=0.1)
    )
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    findings = fl.check(model, optimizer)
    assert {f.code for f in findings} == {"FL207"}
    assert [f.where for f in findings] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert not moved(model[0].weight, lambda: step(model, optimizer))


def test_optimizer_resume_is_by_position() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    frozen = fl.freeze(model, "1")
    saved = fl.optimizer(torch.optim.AdamW, model, lr=0.1).state_dict()
    frozen.undo()
    fl.freeze(model, "0")
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1)
    optimizer.load_state_dict(saved)
    assert [f.where for f in fl.check(model, optimizer)] == ["1.weight", "1.bias"]
    assert codes(model, optimizer) == {"FL209"}


def test_optimizer_resume_gives_state_of_another_shape() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False))
    optimizer = torch.optim.Adam([model[0].weight], lr=0.1)
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    other = torch.optim.Adam([model[1].weight], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    model.zero_grad()
    model[0].requires_grad_(False)
    assert [(f.code, f.where) for f in fl.check(model, other)] == [("FL209", "1.weight")]


def test_a_parameter_removed_and_its_state_kept() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    model[0].requires_grad_(False)
    optimizer.param_groups[0]["params"] = list(model[2].parameters())
    findings = fl.check(model, optimizer)
    assert [(f.code, f.where) for f in findings] == [("FL208", "0.weight"), ("FL208", "0.bias")]
    with pytest.raises(KeyError):
        optimizer.state_dict()


def test_the_trainers_optimizer_held_two_parameters() -> None:
    model = net()
    fl.freeze(model, "0")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    fl.unfreeze(model, "0")
    assert codes(model, optimizer) == {"FL201"}
    assert not moved(model[0].weight, lambda: step(model, optimizer))


def test_optimizer_state_stays_allocated_after_freezing() -> None:
    model = net()
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1)
    step(model, optimizer)
    fl.freeze(model, "0")
    findings = fl.check(model, optimizer)
    assert [(f.code, f.where) for f in findings] == [("FL202", "0.weight"), ("FL202", "0.bias")]
    assert "256 B of its state (exp_avg, exp_avg_sq)" in findings[0].message
    fl.sync(model, optimizer)
    assert codes(model, optimizer) == set()
