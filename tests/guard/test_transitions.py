"""What a guard covers, what it does about a violation, and that it leaves no trace."""

from __future__ import annotations

import torch
from guarding import frozen_net, net, train, violated
from torch import Tensor, nn
from torch.optim import SGD

import frostline as fl

# --- transitions ------------------------------------------------------------------------------


def test_a_thaw_a_freeze_and_an_undo_move_what_is_guarded() -> None:
    model = net()
    fl.freeze(model, all_but="4")
    optimizer = fl.optimizer(SGD, model, lr=0.1, declare_all=True)
    with fl.guard(model, optimizer, every=1) as guard:
        train(model, optimizer)
        assert guard.report.parameters == 6
        optimizer.zero_grad()
        thawed = fl.unfreeze(model, "0")
        before = model[0].weight.clone()
        train(model, optimizer)
        assert guard.report.parameters == 4
        assert not torch.equal(model[0].weight, before)
        optimizer.zero_grad()
        thawed.undo()
        before = model[0].weight.clone()
        train(model, optimizer)
        assert guard.report.parameters == 6
        optimizer.zero_grad()
        with fl.freeze(model, "4.weight"):
            train(model, optimizer)
            assert guard.report.parameters == 7
        train(model, optimizer)
        assert torch.equal(model[0].weight, before)
    assert guard.report.parameters == 6
    assert guard.report.violations == ()


def test_statistics_that_were_thawed_may_move_in_the_next_forward() -> None:
    model, optimizer = frozen_net()
    with fl.guard(model, optimizer, every=1) as guard:
        train(model, optimizer)
        assert guard.report.buffers == 3
        optimizer.zero_grad()
        fl.unfreeze(model, "1")
        fl.sync(model, optimizer)
        before = model[1].running_mean.clone()
        train(model, optimizer)
        assert guard.report.buffers == 0
    assert not torch.equal(model[1].running_mean, before)
    assert guard.report.violations == ()


def test_statistics_thawed_and_frozen_again_are_guarded_as_they_are_then() -> None:
    model, optimizer = frozen_net()

    def write(module: nn.Module, args: object, output: object) -> None:
        module.running_mean.add_(1)

    with violated(model, optimizer, every=1, match="by the forward of the model") as caught:
        train(model, optimizer)
        optimizer.zero_grad()
        fl.unfreeze(model, "1")
        model[1].running_mean.add_(1)
        fl.freeze(model, "1")
        model[1].register_forward_hook(write)
        train(model, optimizer)
    assert [change.name for change in caught.value.changes] == ["1.running_mean"]


def test_what_is_frozen_inside_is_guarded_from_then_on() -> None:
    model, optimizer = frozen_net()
    with violated(model, optimizer, every=1) as caught:
        train(model, optimizer)
        optimizer.zero_grad()
        optimizer.state.clear()
        fl.freeze(model, "3")
        train(model, optimizer)
        model[3].bias.data.add_(1)
        train(model, optimizer)
    assert [change.name for change in caught.value.changes] == ["3.bias"]


def test_thawed_written_and_frozen_again_between_two_steps_is_no_violation() -> None:
    model, optimizer = frozen_net()
    with fl.guard(model, optimizer, every=1) as guard:
        train(model, optimizer)
        optimizer.zero_grad()
        fl.unfreeze(model, "0")
        model[0].weight.data.add_(1)
        fl.freeze(model, "0")
        train(model, optimizer)
    assert guard.report.violations == ()


def test_a_second_freeze_excuses_nothing() -> None:
    model, optimizer = frozen_net()
    with violated(model, optimizer, every=1):
        train(model, optimizer)
        optimizer.zero_grad()
        model[0].weight.data.add_(1)
        fl.freeze(model, "0")
        train(model, optimizer)


def test_what_was_frozen_by_hand_before_a_freeze_stays_guarded_after_its_undo() -> None:
    model = net()
    model[0].requires_grad_(False)
    frozen = fl.freeze(model, "0")
    optimizer = fl.optimizer(SGD, model, lr=0.1)
    with violated(model, optimizer, every=1) as caught:
        train(model, optimizer)
        optimizer.zero_grad()
        frozen.undo()
        train(model, optimizer)
        model[0].bias.data.add_(1)
        train(model, optimizer)
    assert [change.name for change in caught.value.changes] == ["0.bias"]


def test_what_replaces_a_frozen_parameter_is_guarded_in_its_place() -> None:
    model, optimizer = frozen_net()
    same = {key: value.clone() for key, value in model[0].state_dict().items()}
    with violated(model, optimizer, every=1) as caught:
        train(model, optimizer)
        model[0].load_state_dict(same, assign=True)
        train(model, optimizer)
        model[0].bias.data.add_(1)
        train(model, optimizer)
    assert [change.name for change in caught.value.changes] == ["0.bias"]
    assert caught.value.step == 3


class Counting(nn.Module):
    """Writes a buffer before it calls a child."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.Buffer(torch.zeros(()))
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


def test_buffers_that_a_pin_puts_back_are_no_violation() -> None:
    model = nn.Sequential(Counting(), *net())
    fl.freeze(model, all_but="5", pin_eval=False)
    optimizer = fl.optimizer(SGD, model, lr=0.1)
    model.train()
    with fl.guard(model, optimizer, every=1) as guard:
        train(model, optimizer, steps=2)
    assert guard.report.buffers == 4
    assert guard.report.violations == ()


def test_frozen_by_hand() -> None:
    model = net()
    model[0].requires_grad_(False)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with fl.guard(model, optimizer) as guard:
        train(model, optimizer, steps=2)
        assert (guard.report.parameters, guard.report.buffers) == (2, 0)
        model[4].requires_grad_(False)  # by hand inside the guard: for a while, as GANs do
        train(model, optimizer)
        model[4].requires_grad_(True)
        train(model, optimizer)
    assert guard.report.violations == ()
