"""Whoever writes a frozen tensor is named, exactly, with every=1."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from guarding import violated, warned
from torch import Tensor, nn
from torch.optim import SGD

import frostline as fl
from frostline.guard import keeper


class Net(nn.Module):
    """Linear, BatchNorm, Linear; ``meddle`` runs inside the forward of ``middle``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(4)
        self.middle = Meddler()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.norm(self.stem(x))))


class Meddler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.meddle: Callable[[], object] = lambda: None

    def forward(self, x: Tensor) -> Tensor:
        self.meddle()
        return x.relu()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)
    model(torch.randn(6, 8)).square().mean().backward()
    optimizer.step()


def frozen_net() -> tuple[Net, torch.optim.Optimizer]:
    model = Net()
    fl.freeze(model, all_but="head")
    return model, fl.optimizer(SGD, model, lr=0.1)


def caught(model: nn.Module, optimizer: torch.optim.Optimizer, **between: object) -> fl.GuardError:
    """The error of a loop in which ``before`` is called before the third step."""
    before = between["before"]
    assert callable(before)
    with violated(model, optimizer, every=1) as caught:
        for number in range(4):
            if number == 2:
                before()
            train_step(model, optimizer)
    assert caught.value.step == 3
    return caught.value


def half_frozen(weight_decay: float, momentum: float) -> tuple[Net, torch.optim.Optimizer]:
    """Two steps with everything trainable, then the stem is frozen by hand, its gradient left."""
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=weight_decay, momentum=momentum)
    train_step(model, optimizer)
    model.stem.requires_grad_(False)
    return model, optimizer


OPTIONS = [pytest.param(0.5, 0.0, id="weight decay"), pytest.param(0.0, 0.9, id="momentum")]


@pytest.mark.parametrize(("weight_decay", "momentum"), OPTIONS)
def test_a_stale_gradient_is_named_before_it_is_applied(
    weight_decay: float, momentum: float
) -> None:
    model, optimizer = half_frozen(weight_decay, momentum)
    before = model.stem.weight.clone()
    with violated(model, optimizer) as caught:
        train_step(model, optimizer)
    first = caught.value.violations[0]
    assert (first.kind, first.name, first.step) == ("gradient", "stem.weight", 1)
    assert first.writer is not None
    assert first.writer.name == "SGD"
    assert f"group 0 (lr=0.1, weight_decay={weight_decay}, momentum={momentum})" in str(first)
    assert "has a gradient of zeros" in str(first)
    assert torch.equal(model.stem.weight, before)


@pytest.mark.parametrize(("weight_decay", "momentum"), OPTIONS)
def test_weight_decay_and_momentum_through_a_stale_gradient(
    weight_decay: float, momentum: float
) -> None:
    model, optimizer = half_frozen(weight_decay, momentum)
    guard = fl.guard(model, optimizer, on="warn")  # by default: the first step is placed
    with warned() as messages, guard:
        train_step(model, optimizer)
    assert "of 2 frozen tensors changed" in messages[1]
    found = [v for v in guard.report.violations if v.kind == "content"]
    assert found[0].name == "stem.weight"
    writer = found[0].writer
    assert writer is not None
    assert (writer.kind, writer.name) == ("optimizer", "SGD")
    options = f"lr=0.1, weight_decay={weight_decay}, momentum={momentum}"
    assert writer.text.startswith(f"SGD.step(), whose group 0 ({options}) holds it, with its stale")
    assert found[0].change is not None
    assert found[0].change.moved == 32
    assert found[0].change.max_abs > 0


def test_an_optimizer_that_writes_without_a_gradient() -> None:
    class Decayer(SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter.mul_(0.9)

    model = Net()
    fl.freeze(model, "stem")
    optimizer = Decayer(model.parameters(), lr=0.1)
    with violated(model, optimizer, match="although it has no gradient") as caught:
        train_step(model, optimizer)
    assert caught.value.writer is not None
    assert caught.value.writer.name == "Decayer"


def test_an_optimizer_that_the_guard_was_not_given() -> None:
    model, optimizer = frozen_net()
    other = SGD(model.stem.parameters(), lr=0.1, weight_decay=0.5)

    def meddle() -> None:
        for parameter in model.stem.parameters():
            parameter.grad = torch.zeros_like(parameter)
        other.step()

    guard = fl.guard(model, optimizer, every=1, on="warn")
    with warned(), guard:
        train_step(model, optimizer)
        meddle()
    (writer,) = {v.writer for v in guard.report.violations if v.kind == "content"}
    assert writer is not None
    assert writer.text.startswith("SGD.step(), whose group 0 (lr=0.1, weight_decay=0.5")
    assert "(not given to the guard)" in writer.text


def test_two_parameters_on_one_storage() -> None:
    model = Net()
    model.twin = nn.Parameter(model.stem.weight.data)  # type: ignore[assignment]
    model.stem.requires_grad_(False)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with violated(
        model, optimizer, every=1, match=r"holds twin, which lies on the same memory"
    ) as caught:
        (model(torch.randn(6, 8)).sum() + model.twin.sum()).backward()
        optimizer.step()
    assert caught.value.changes[0].name == "stem.weight"


def test_a_batch_norm_that_runs_in_train_mode() -> None:
    model, optimizer = frozen_net()

    def meddle() -> None:
        model.norm.register_forward_pre_hook(lambda module, args: setattr(module, "training", True))

    error = caught(model, optimizer, before=meddle)
    assert error.writer is not None
    assert (error.writer.kind, error.writer.name) == ("forward", "norm")
    assert "the forward of 'norm' (BatchNorm1d), which ran in train mode" in str(error)
    assert [c.name for c in error.changes] == [
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]


def test_statistics_written_in_another_modules_forward() -> None:
    model, optimizer = frozen_net()
    model.middle.meddle = lambda: F.batch_norm(
        torch.randn(6, 4), model.norm.running_mean, model.norm.running_var, training=True
    )
    with violated(model, optimizer, every=1) as caught:
        train_step(model, optimizer)
    assert caught.value.writer is not None
    assert caught.value.writer.name == "middle"


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda weight: weight.detach().mul_(2), id="in place"),
        pytest.param(lambda weight: weight.data.mul_(2), id="data"),
        pytest.param(lambda weight: weight.detach().numpy().__imul__(2), id="numpy"),
    ],
)
def test_a_write_in_a_modules_forward(write: Callable[[Tensor], object]) -> None:
    model, optimizer = frozen_net()
    error = caught(
        model,
        optimizer,
        before=lambda: setattr(model.middle, "meddle", lambda: write(model.stem.weight)),
    )
    assert error.writer is not None
    assert (error.writer.kind, error.writer.name) == ("forward", "middle")
    assert "the forward of 'middle' (Meddler), which ran in" in str(error)
    assert [change.name for change in error.changes] == ["stem.weight"]
    assert error.changes[0].moved == 32


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda weight: weight.data.add_(1), id="data"),
        pytest.param(lambda weight: weight.detach().numpy().__iadd__(1), id="numpy"),
    ],
)
def test_a_write_outside(write: Callable[[Tensor], object]) -> None:
    model, optimizer = frozen_net()
    error = caught(model, optimizer, before=lambda: write(model.stem.weight))
    assert error.writer is not None
    assert error.writer.kind == "outside"
    assert "between the end of SGD.step() and the start of the forward of Net" in str(error)
    assert error.changes[0].max_abs == pytest.approx(1.0)


def test_a_write_between_forward_and_step() -> None:
    model, optimizer = frozen_net()
    with violated(model, optimizer, every=1) as caught:
        loss = model(torch.randn(6, 8)).sum()
        model.stem.weight.data.add_(1)
        loss.backward()
        optimizer.step()
    place = "between the end of the forward of Net and the start of SGD.step()"
    assert place in str(caught.value)


@pytest.mark.parametrize("every", [pytest.param(1, id="always"), pytest.param(None, id="default")])
@pytest.mark.parametrize("part", ["", "stem"])
@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict(every: int | None, part: str, assign: bool) -> None:
    model, optimizer = frozen_net()
    other = Net()
    with violated(model, optimizer, every=every) as caught:
        for _ in range(3):
            train_step(model, optimizer)
        model.get_submodule(part).load_state_dict(
            other.get_submodule(part).state_dict(), assign=assign
        )
    assert caught.value.writer is not None
    assert (caught.value.writer.kind, caught.value.writer.name) == ("load_state_dict", part)
    assert caught.value.step == 4
    assert "stem.weight" in [change.name for change in caught.value.changes]


def test_a_failed_load_leaves_no_suspect_behind() -> None:
    model, optimizer = frozen_net()

    def refuse(*_: object) -> None:
        raise KeyError("no")

    handle = model.head.register_load_state_dict_pre_hook(refuse)
    with violated(model, optimizer, every=1) as caught:
        with pytest.raises(KeyError):
            model.load_state_dict(model.state_dict())
        handle.remove()
        optimizer.step()
        model.stem.weight.data.add_(1)
        optimizer.step()
    assert caught.value.writer is not None
    assert caught.value.writer.kind == "outside"


def test_loading_what_is_there_already_is_no_change() -> None:
    model, optimizer = frozen_net()
    with fl.guard(model, optimizer) as guard:
        model.load_state_dict(model.state_dict())
        train_step(model, optimizer)
    assert guard.report.violations == ()


def test_a_failed_forward_leaves_no_suspect_behind() -> None:
    model, optimizer = frozen_net()
    with violated(model, optimizer, every=1) as caught:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.randn(6, 7))
        model.stem.weight.data.add_(1)
        train_step(model, optimizer)
    assert caught.value.writer is not None
    assert caught.value.writer.kind == "outside"


def test_a_forward_inside_an_optimizers_step_is_named_as_such() -> None:
    model = Net()
    model.stem.requires_grad_(False)
    optimizer = torch.optim.LBFGS(model.head.parameters(), lr=0.1, max_iter=2)
    fl.freeze(model, "norm")
    model.middle.meddle = lambda: model.stem.weight.data.add_(1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(6, 8)).square().mean()
        loss.backward()
        return loss

    with violated(model, optimizer, every=1) as caught:
        optimizer.step(closure)
    assert caught.value.writer is not None
    assert caught.value.writer.name == "middle"


@pytest.mark.parametrize(
    ("write", "name"),
    [
        pytest.param(lambda weight: weight.detach().mul_(2), "middle", id="counted by torch"),
        pytest.param(lambda weight: weight.data.mul_(2), "", id="not counted"),
    ],
)
def test_a_model_too_large_to_look_at_everywhere(
    write: Callable[[Tensor], object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_FORWARD_BYTES", 0)
    model, optimizer = frozen_net()
    model.middle.meddle = lambda: write(model.stem.weight)
    with violated(model, optimizer) as caught:
        train_step(model, optimizer)
    assert caught.value.writer is not None
    assert (caught.value.writer.kind, caught.value.writer.name) == ("forward", name)
    assert ("or a call inside it" in caught.value.writer.text) is (name == "")


def test_late_writers_are_suspected_then_placed() -> None:
    model, optimizer = frozen_net()
    guard = fl.guard(model, optimizer, every=4, on="warn")
    with warned() as messages, guard:
        for number in range(7):
            model.middle.meddle = (
                (lambda: model.stem.weight.data.add_(1)) if number >= 2 else (lambda: None)
            )
            train_step(model, optimizer)
    assert "32 elements moved, by at most 2 after step 1, by step 4" in messages[0]
    assert "was not placed in time" in messages[0]
    (found,) = guard.report.violations
    assert found.writer is not None
    assert (found.writer.kind, found.writer.name, found.step) == ("forward", "middle", 5)
    assert len(messages) == 1
