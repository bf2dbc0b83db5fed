"""What a guard covers, what it does about a violation, and that it leaves no trace."""

from __future__ import annotations

import torch
from guarding import frozen_net, net, train, violated
from torch import Tensor, nn
from torch.optim import SGD, AdamW

import frostline as fl

# --- coverage ---------------------------------------------------------------------------------


def faults(error: fl.GuardError) -> list[tuple[str, str]]:
    return [(violation.kind, violation.name) for violation in error.violations]


def test_a_flag_set_by_hand() -> None:
    model, optimizer = frozen_net()
    with violated(model, optimizer, match="requires_grad is True again") as caught:
        train(model, optimizer)
        model.requires_grad_()
        train(model, optimizer)
    assert caught.value.step == 2
    assert faults(caught.value)[:2] == [("flag", "0.weight"), ("flag", "0.bias")]
    assert caught.value.changes == ()


def test_trainable_in_no_group() -> None:
    model = net()
    fl.freeze(model, "0")
    optimizer = SGD(model[4].parameters(), lr=0.1)
    with violated(model, optimizer, match="in no group of SGD") as caught:
        train(model, optimizer)
    names = ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert faults(caught.value) == [("membership", name) for name in names]


def test_trainable_in_two_optimizers() -> None:
    model = net()
    one, two = SGD(model.parameters(), lr=0.1), SGD(model[4].parameters(), lr=0.1)
    with violated(model, one, two, match="in group 0 of SGD and group 0 of SGD") as caught:
        train(model, one, two)
    assert faults(caught.value) == [("membership", "4.weight"), ("membership", "4.bias")]


def test_several_optimizers_that_share_the_model() -> None:
    model = net()
    fl.freeze(model, "0")
    one = SGD([*model[1].parameters(), *model[3].parameters()], lr=0.1)
    two = AdamW(model[4].parameters(), lr=0.1)
    with fl.guard(model, one, two) as guard:
        train(model, one, two, steps=3)
    assert guard.report.steps == 3


def test_optimizers_that_step_at_different_rates() -> None:
    model = net()
    one = SGD([*model[0].parameters(), *model[1].parameters(), *model[3].parameters()], lr=0.1)
    two = AdamW(model[4].parameters(), lr=0.1)
    with fl.guard(model, one, two) as guard:
        train(model, one, steps=3)
        train(model, two)
        assert guard.report.steps == 3
        train(model, one)
    assert guard.report.steps == 4


def test_assign_leaves_the_optimizer_with_dead_tensors() -> None:
    model, optimizer = frozen_net()
    with violated(model, optimizer, match=r"4 tensors that are not the model's") as caught:
        train(model, optimizer)
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
        train(model, optimizer)
    assert ("membership", "4.weight") in faults(caught.value)


def test_frozen_and_declared_is_well_and_with_state_is_not() -> None:
    model = net()
    fl.freeze(model, "0")
    optimizer = fl.optimizer(AdamW, model, lr=0.1, declare_all=True)
    with violated(model, optimizer, match=r"keeps state for it \(step, exp_avg") as caught:
        train(model, optimizer, steps=2)
        optimizer.zero_grad()
        fl.freeze(model, "3")
        train(model, optimizer)
    assert faults(caught.value) == [("membership", "3.weight"), ("membership", "3.bias")]
    assert caught.value.step == 3


class Experts(nn.Module):
    """Two experts of which only the first is used, until told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])
        self.chosen = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[self.chosen](x)


def test_a_trainable_parameter_that_no_gradient_reaches() -> None:
    model = Experts()
    optimizer = SGD(model.parameters(), lr=0.1)
    with violated(
        model, optimizer, patience=4, match="no gradient reached it in 4 steps"
    ) as caught:
        train(model, optimizer, steps=9)
    names = ["experts.1.weight", "experts.1.bias"]
    assert faults(caught.value) == [("unreached", name) for name in names]
    assert caught.value.step == 4


def test_it_is_named_at_the_end_at_the_latest() -> None:
    model = Experts()
    optimizer = SGD(model.parameters(), lr=0.1)
    with violated(model, optimizer, match="no gradient reached it in 2 steps"):
        train(model, optimizer, steps=2)


def test_an_expert_that_is_used_now_and_then_is_reached() -> None:
    model = Experts()
    optimizer = SGD(model.parameters(), lr=0.1)
    with fl.guard(model, optimizer, patience=4):
        train(
            model,
            optimizer,
            steps=9,
            before=lambda number: setattr(model, "chosen", int(number == 3)),
        )


def test_a_group_that_the_scheduler_does_not_know() -> None:
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    extra = nn.Linear(3, 3)
    model.append(extra)
    optimizer.add_param_group({"params": list(extra.parameters())})
    with violated(
        model, optimizer, scheduler=scheduler, match="after the StepLR was built"
    ) as caught:
        train(model, optimizer)
    assert faults(caught.value) == [("membership", "5.weight"), ("membership", "5.bias")]
