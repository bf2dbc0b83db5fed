"""What a guard covers, what it does about a violation, and that it leaves no trace."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.optim import SGD, AdamW
from torch.optim import optimizer as optimizer_hooks

import frostline as fl


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Linear(4, 3)
    )


def frozen_net() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = net()
    fl.freeze(model, all_but=["3", "4"])
    return model, fl.optimizer(AdamW, model, lr=0.1)


def train(
    model: nn.Module,
    *optimizers: torch.optim.Optimizer,
    steps: int = 1,
    before: Callable[[int], object] = lambda number: None,
) -> None:
    for number in range(1, steps + 1):
        before(number)
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randn(6, 8)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


@contextmanager
def warned() -> Iterator[list[str]]:
    """The guard's warnings, none of which is an error inside."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", fl.GuardWarning)
        yield messages
    messages += [str(w.message) for w in caught if w.category is fl.GuardWarning]


@contextmanager
def violated(
    model: nn.Module, *optimizers: torch.optim.Optimizer, match: str = ".", **options: Any
) -> Iterator[pytest.ExceptionInfo[fl.GuardError]]:
    """A guarded loop that the guard ends by an error."""
    with (
        pytest.raises(fl.GuardError, match=match) as caught,
        fl.guard(model, *optimizers, **options),
    ):
        yield caught


def bits(model: nn.Module) -> dict[str, str]:
    return {name: fl.fingerprint(tensor) for name, tensor in model.state_dict().items()}


def hooks(model: nn.Module) -> list[object]:
    """Everything that a guard could leave behind."""
    kept: list[object] = [
        list(module_hooks._global_forward_hooks),
        list(module_hooks._global_forward_pre_hooks),
        list(optimizer_hooks._global_optimizer_pre_hooks),
        list(optimizer_hooks._global_optimizer_post_hooks),
    ]
    for module in model.modules():
        kept += [{k: list(v) for k, v in vars(module).items() if k.endswith("_hooks")}]
    return kept


# --- no trace ---------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["raise", "warn", "restore"])
@pytest.mark.parametrize("every", [1, 2, None])
def test_training_is_bitwise_the_same_with_a_guard(every: int | None, on: str) -> None:
    results = []
    for guarded in (False, True):
        model, optimizer = frozen_net()
        if guarded:
            with fl.guard(model, optimizer, every=every, on=on) as guard:  # type: ignore[arg-type]
                train(model, optimizer, steps=5)
            assert guard.report.violations == ()
            assert guard.report.steps == 5
        else:
            train(model, optimizer, steps=5)
        results.append((bits(model), fl.fingerprint(torch.random.get_rng_state())))
    assert results[0] == results[1]


def test_an_encoder_frozen_by_hand_takes_the_same_path_through_torch() -> None:
    """With a hook on any module TransformerEncoderLayer leaves its fast path, and rounds apart."""
    results = []
    for guarded in (False, True):
        torch.manual_seed(0)
        encoder = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True).eval()
        model = nn.Sequential(encoder.requires_grad_(False), nn.Linear(64, 3))
        optimizer = SGD(model[1].parameters(), lr=0.1)
        x = torch.randn(4, 9, 64)
        guard = fl.guard(model, optimizer, every=1)
        if guarded:
            guard.start()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())
        assert len(model._forward_hooks) == guarded
        model(x).square().sum().backward()
        optimizer.step()
        guard.stop()
        results.append(bits(model))
    assert results[0] == results[1]


@pytest.mark.parametrize("fails", [False, True])
def test_all_hooks_are_removed(fails: bool) -> None:
    model, optimizer = frozen_net()
    before = hooks(model)
    try:
        with fl.guard(model, optimizer, every=1):
            assert hooks(model) != before
            train(model, optimizer)
            if fails:
                raise KeyError("the user's own")
    except KeyError:
        assert fails
    assert hooks(model) == before


def test_an_error_of_the_loop_is_not_masked() -> None:
    model, optimizer = frozen_net()
    guard = fl.guard(model, optimizer)

    def loop() -> None:
        with guard:
            train(model, optimizer, steps=3)
            model[0].weight.data.add_(1)
            raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        loop()
    assert guard.report.steps == 3
    assert guard.report.violations == ()


def test_a_copy_and_a_pickle_made_inside_are_not_guarded() -> None:
    model, optimizer = frozen_net()
    with fl.guard(model, optimizer, every=1) as guard:
        twin = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        assert b"frostline.guard.session" not in file.getvalue()
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        checks = guard.report.checks
        for other in (twin, loaded):
            other.load_state_dict(net().state_dict())
            other[0].weight.data.add_(1)
            other(torch.randn(6, 8))
        assert guard.report.checks == checks
        train(model, optimizer)


def test_other_models_and_optimizers_are_none_of_its_business() -> None:
    model, optimizer = frozen_net()
    other = net()
    with fl.guard(model, optimizer, every=1) as guard:
        train(other, SGD(other.parameters(), lr=0.1), steps=3)
        train(model, optimizer)
    assert guard.report.steps == 1


# --- content ----------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [pytest.param(1000, id="rarely"), pytest.param(None, id="paced")])
def test_everything_is_compared_at_the_end(every: int | None) -> None:
    model, optimizer = frozen_net()
    with violated(model, optimizer, every=every) as caught:
        train(model, optimizer, steps=3)
        model[1].running_mean[2] = 7.0
    error = caught.value
    assert isinstance(error, fl.FrozenChangedError)
    assert [c.name for c in error.changes] == ["1.running_mean"]
    assert error.changes[0].moved == 1
    assert error.step == 3


def test_every_so_many_steps() -> None:
    model, optimizer = frozen_net()

    def meddle(number: int) -> None:
        if number == 4:
            model[0].weight.data[0, 0] += 1

    with violated(model, optimizer, every=3) as caught:
        train(model, optimizer, steps=9, before=meddle)
    (violation,) = caught.value.violations
    assert (violation.since, violation.step) == (3, 6)
    assert "1 of 32 elements moved, by at most 1 after step 3, by step 6" in str(caught.value)


def test_the_default_reads_all_content_again_and_again() -> None:
    model, optimizer = frozen_net()
    with fl.guard(model, optimizer) as guard:
        train(model, optimizer, steps=2)
        guard._pace.share = 10.0  # as in a loop that takes its time
        first = guard.report.checks
        train(model, optimizer, steps=4)
        assert guard.report.checks - first >= 4 * 7
    assert guard.report.bytes_read > 0


def test_a_change_found_in_turn_has_all_the_others_looked_at() -> None:
    model, optimizer = frozen_net()
    guard = fl.guard(model, optimizer, every=2)
    guard.start()
    train(model, optimizer, steps=2)
    for parameter in (*model[0].parameters(), *model[1].parameters()):
        parameter.data.add_(1)
    guard._timeline.cut("now")
    found = guard._keeper.look([guard._keeper.watched["0.bias"]], step=3)
    guard.stop()
    assert sorted(v.name for v in found) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_strides_and_devices_are_no_content() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    fl.freeze(model, "0")
    optimizer = fl.optimizer(SGD, model, lr=0.1)
    with fl.guard(model, optimizer, every=1) as guard:
        model.to(memory_format=torch.channels_last)
        model(torch.randn(1, 3, 8, 8)).sum().backward()
        optimizer.step()
    assert guard.report.violations == ()


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


# --- optimizers made of optimizers --------------------------------------------------------------


class Outer(SGD):
    """Torch wraps the step of each class, so hooks fire for this one and for the one inside."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.decayed: Tensor | None = None
        self.fails = False

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        if self.fails:
            raise RuntimeError("overflow")
        if self.decayed is not None:
            self.decayed.data.mul_(0.5)
        return loss


def outer(model: nn.Module) -> Outer:
    SGD([nn.Parameter(torch.zeros(1))])  # from now on SGD.step is wrapped too
    return Outer([p for p in model.parameters() if p.requires_grad], lr=0.1)


@pytest.mark.parametrize("every", [1, None])
def test_a_step_inside_a_step_of_the_same_optimizer_is_one_step(every: int | None) -> None:
    model, _ = frozen_net()
    optimizer = outer(model)
    with fl.guard(model, optimizer, every=every) as guard:
        train(model, optimizer, steps=5)
    assert guard.report.steps == 5
    assert guard.report.violations == ()


def test_what_a_step_writes_after_the_step_inside_it_is_put_down_to_it() -> None:
    model, _ = frozen_net()
    optimizer = outer(model)
    optimizer.decayed = model[0].weight
    with violated(model, optimizer, every=1) as caught:
        train(model, optimizer, steps=2)
    assert caught.value.step == 1
    assert caught.value.writer is not None
    assert (caught.value.writer.kind, caught.value.writer.name) == ("optimizer", "Outer")


def test_steps_that_fail_within_do_not_hide_later_ones() -> None:
    model, _ = frozen_net()
    optimizer = outer(model)
    with fl.guard(model, optimizer) as guard:
        optimizer.fails = True
        for _ in range(2):
            with pytest.raises(RuntimeError, match="overflow"):
                train(model, optimizer)
        optimizer.fails = False
        train(model, optimizer, steps=3)
    assert guard.report.steps == 3


# --- a thaw between forward and backward --------------------------------------------------------


def half_thawed() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))
    fl.freeze(model, "0")
    return model, fl.optimizer(AdamW, model, lr=0.1, declare_all=True)


@pytest.mark.parametrize("every", [1, None])
@pytest.mark.parametrize("by_children", [False, True])
def test_a_thaw_between_forward_and_backward(every: int | None, by_children: bool) -> None:
    model, optimizer = half_thawed()

    def forward() -> Tensor:
        x = torch.randn(6, 8)
        return model[1](model[0](x)) if by_children else model(x)

    with violated(model, optimizer, every=every, match="thawed between forward and") as caught:
        for number in (1, 2):
            optimizer.zero_grad()
            loss = forward().mean()
            if number == 2:
                with torch.no_grad():
                    model(torch.randn(6, 8))  # a validation meanwhile changes nothing
                fl.unfreeze(model, "0")
            loss.backward()
            optimizer.step()
    assert faults(caught.value) == [("thaw", "0.weight"), ("thaw", "0.bias")]
    assert caught.value.step == 2
    assert "step boundary" in str(caught.value)


def test_a_late_thaw_is_named_once_and_the_next_step_trains_it() -> None:
    model, optimizer = half_thawed()
    guard = fl.guard(model, optimizer, on="warn")
    with warned() as messages, guard:
        train(model, optimizer)
        loss = model(torch.randn(6, 8)).mean()
        fl.unfreeze(model, "0")
        loss.backward()
        optimizer.step()
        train(model, optimizer, steps=2)
    assert len(messages) == 1
    assert [(v.kind, v.name, v.step) for v in guard.report.violations] == [
        ("thaw", "0.weight", 2),
        ("thaw", "0.bias", 2),
    ]
    assert model[0].weight.grad is not None


def at_the_boundary(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    fl.unfreeze(model, "second")
    train(model, optimizer)


def between_two_micro_batches(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(6, 8)).square().mean().backward()
    fl.unfreeze(model, "second")
    model(torch.randn(6, 8)).square().mean().backward()
    optimizer.step()


def after_all_gradients_are_gone(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(6, 8)).square().mean().backward()
    optimizer.zero_grad()
    fl.unfreeze(model, "second")
    optimizer.step()


def after_the_step_without_another_forward(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    model(torch.randn(6, 8)).square().mean().backward()
    optimizer.step()
    fl.unfreeze(model, "second")
    optimizer.step()


@pytest.mark.parametrize("every", [1, None])
@pytest.mark.parametrize(
    "thaw",
    [
        at_the_boundary,
        between_two_micro_batches,
        after_all_gradients_are_gone,
        after_the_step_without_another_forward,
    ],
)
def test_a_thawed_expert_that_is_not_used_is_no_late_thaw(
    thaw: Callable[[nn.Module, torch.optim.Optimizer], None], every: int | None
) -> None:
    """A forward ran after the thaw, or no gradient was to come: there is none for good reason."""
    model = Experts()
    fl.freeze(model, "second")
    optimizer = fl.optimizer(AdamW, model, lr=0.1, declare_all=True)
    guard = fl.guard(model, optimizer, on="warn", every=every)
    guard.start()
    train(model, optimizer)
    thaw(model, optimizer)
    guard.stop(check=False)
    assert guard.report.violations == ()


# --- state that is kept on purpose --------------------------------------------------------------


def test_state_that_sync_keeps_on_purpose_is_well() -> None:
    model = net()
    optimizer = fl.optimizer(AdamW, model, lr=0.1)
    train(model, optimizer)
    optimizer.zero_grad()
    fl.freeze(model, "3")
    fl.sync(model, optimizer, state="keep")
    with fl.guard(model, optimizer) as guard:
        train(model, optimizer, steps=2)
    assert guard.report.violations == ()
    assert optimizer.state[model[3].weight]


def test_state_kept_for_one_excuses_no_other() -> None:
    model = net()
    optimizer = fl.optimizer(AdamW, model, lr=0.1)
    train(model, optimizer)
    optimizer.zero_grad()
    fl.freeze(model, "3")
    fl.sync(model, optimizer, state="keep")
    with violated(model, optimizer, match="keeps state for it") as caught:
        train(model, optimizer)
        optimizer.zero_grad()
        fl.freeze(model, "0")  # and no sync
        train(model, optimizer)
    assert faults(caught.value) == [("membership", "0.weight"), ("membership", "0.bias")]
