"""What a guard covers, what it does about a violation, and that it leaves no trace."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from guarding import bits, frozen_net, net, train, violated, warned
from torch import Tensor, nn
from torch.optim import SGD

import frostline as fl

# --- what it does about it --------------------------------------------------------------------


def test_warnings_come_once_for_each_tensor() -> None:
    model, optimizer = frozen_net()
    with warned() as messages, fl.guard(model, optimizer, every=1, on="warn") as guard:
        train(model, optimizer, steps=4, before=lambda number: model[0].bias.data.add_(1))
    assert len(messages) == 1
    assert "step 1: 1 of 7 frozen tensors changed" in messages[0]
    assert [violation.name for violation in guard.report.violations] == ["0.bias"]


def test_a_warning_can_be_made_an_error() -> None:
    model, optimizer = frozen_net()
    with pytest.raises(fl.GuardWarning), fl.guard(model, optimizer, every=1, on="warn"):
        train(model, optimizer, before=lambda number: model[0].bias.data.add_(1))


def test_restore_puts_values_flags_and_gradients_back() -> None:
    model, optimizer = frozen_net()
    before = bits(model)
    frozen = [name for name in before if name[0] in "01"]

    def meddle(number: int) -> None:
        if number == 2:
            model[0].weight.data.mul_(float("nan"))
            model[0].requires_grad_(True)
        if number == 3:
            model[1].running_var = torch.zeros(4)
            model[0].load_state_dict(nn.Linear(8, 4).state_dict(), assign=True)

    weight = model[0].weight
    with fl.guard(model, optimizer, every=1, on="restore") as guard:
        train(model, optimizer, steps=4, before=meddle)
    assert {name: bits(model)[name] for name in frozen} == {name: before[name] for name in frozen}
    assert model[0].weight is weight
    assert not weight.requires_grad
    assert weight.grad is None
    assert guard.report.restored == 4
    assert {v.kind for v in guard.report.violations} == {"content", "flag"}


def test_restore_between_forward_and_backward() -> None:
    """A write that autograd counts would make backward refuse."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    fl.freeze(model, "1")
    optimizer = fl.optimizer(SGD, model, lr=0.1)
    before = model[1].weight.clone()
    with fl.guard(model, optimizer, every=1, on="restore") as guard:
        model[2].register_forward_pre_hook(
            lambda module, args: setattr(model[1].weight, "data", model[1].weight.data + 1)
        )
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
    assert guard.report.restored == 1
    assert torch.equal(model[1].weight, before)


def test_restore_warns_of_what_it_cannot_mend() -> None:
    model = net()
    fl.freeze(model, "0")
    optimizer = SGD(model[4].parameters(), lr=0.1)
    with warned() as messages, fl.guard(model, optimizer, on="restore"):
        train(model, optimizer, steps=2)
    assert len(messages) == 1
    assert "in no group" in messages[0]


def test_the_loop_may_catch_the_error_and_go_on() -> None:
    model, optimizer = frozen_net()
    with fl.guard(model, optimizer, every=1) as guard:
        train(model, optimizer)
        model[0].bias.data.add_(1)
        with pytest.raises(fl.GuardError):
            train(model, optimizer)
        train(model, optimizer, steps=2)
        model[0].bias.data.add_(1)
        with pytest.raises(fl.GuardError):
            train(model, optimizer)
    assert [violation.name for violation in guard.report.violations] == ["0.bias"]


def test_the_error_survives_a_pickle() -> None:
    model, optimizer = frozen_net()
    with violated(model, optimizer, every=1) as caught:
        train(model, optimizer, before=lambda number: model[0].bias.data.add_(1))
    copied = pickle.loads(pickle.dumps(caught.value))
    assert str(copied) == str(caught.value)
    assert copied.violations == caught.value.violations
    assert copied.changes == caught.value.changes


# --- its life ---------------------------------------------------------------------------------


def test_a_loop_without_an_optimizer() -> None:
    model = net()
    fl.freeze(model, all_but="4")
    guard = fl.guard(model, every=1)

    def loop() -> None:
        for number in range(3):
            model(torch.randn(6, 8)).sum().backward()
            with torch.no_grad():
                for parameter in model[4].parameters():
                    assert parameter.grad is not None
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
                if number == 1:
                    model[0].weight -= 1.0
            guard.step()

    with pytest.raises(fl.GuardError) as caught, guard:
        loop()
    assert caught.value.step == 2
    assert caught.value.writer is not None
    assert "between the end of the forward of Sequential and guard.step()" in str(caught.value)


def test_it_can_be_started_and_stopped_without_a_with() -> None:
    model, optimizer = frozen_net()
    guard = fl.guard(model, optimizer)
    with pytest.raises(fl.TransitionError, match="watched nothing yet"):
        _ = guard.report
    with pytest.raises(fl.TransitionError, match="not watching"):
        guard.step()
    for _ in range(2):
        guard.start()
        with pytest.raises(fl.TransitionError, match="watching already"):
            guard.start()
        train(model, optimizer, steps=2)
        guard.stop()
        guard.stop()
        assert guard.report.steps == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda m, o, s: fl.guard(m, s), "scheduler is given as", id="positional"),
        pytest.param(
            lambda m, o, s: fl.guard(m, SGD(m.parameters(), lr=1), scheduler=s),
            "schedules a AdamW that the guard was not given",
            id="of another optimizer",
        ),
        pytest.param(lambda m, o, s: fl.guard(m, o, on="print"), "on is 'raise'", id="on"),
        pytest.param(lambda m, o, s: fl.guard(m, o, every=0), "every counts steps", id="every"),
        pytest.param(lambda m, o, s: fl.guard(m, o, patience=0), "patience counts", id="patience"),
    ],
)
def test_wrong_calls(call: Callable[..., object], message: str) -> None:
    model, optimizer = frozen_net()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(ValueError, match=message):
        call(model, optimizer, scheduler)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_guarded_and_compiled_no_more_often(in_place: bool) -> None:
    counts = []
    for guarded in (False, True):
        torch._dynamo.reset()
        model, optimizer = frozen_net()
        graphs: list[torch.fx.GraphModule] = []

        def backend(
            graph: torch.fx.GraphModule, inputs: object, graphs: list[torch.fx.GraphModule] = graphs
        ) -> Callable[..., object]:
            graphs.append(graph)
            return graph.forward

        compiled: Any = model
        if in_place:
            model.compile(backend=backend, fullgraph=True)
        else:
            compiled = torch.compile(model, backend=backend, fullgraph=True)
        guard = fl.guard(compiled, optimizer)
        if guarded:
            guard.start()
        train(compiled, optimizer, steps=3)  # it listens closely in the first alone
        guard.stop()
        counts.append(len(graphs))
    assert counts[0] == counts[1]
    with violated(compiled, optimizer, every=1) as caught:
        train(compiled, optimizer)
        model[0].bias.data.add_(1)
        train(compiled, optimizer)
    assert caught.value.writer is not None
    assert caught.value.writer.kind == "outside"
    assert ("a compiled forward" in caught.value.writer.text) is in_place


def test_a_compiled_function_around_the_model() -> None:
    model, optimizer = frozen_net()

    def loss_of(x: Tensor) -> Tensor:
        return model(x).square().mean()

    torch._dynamo.reset()
    with fl.guard(model, optimizer, every=1) as guard:
        for _ in range(2):
            torch.compile(loss_of, backend="eager", fullgraph=True)(torch.randn(6, 8)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert guard.report.steps == 2


def test_recomputation_under_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    model, optimizer = frozen_net()
    with violated(model, optimizer, every=1) as caught:
        for number in range(2):
            hidden = model[:3](torch.randn(6, 8)).requires_grad_()
            checkpoint(model[3:], hidden, use_reentrant=False).square().mean().backward()
            if number == 1:
                model[0].bias.data.add_(1)
            optimizer.step()
            optimizer.zero_grad()
    assert caught.value.writer is not None
    assert caught.value.writer.kind == "outside"
