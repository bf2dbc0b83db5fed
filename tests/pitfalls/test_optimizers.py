"""The pitfalls that come by the optimizer or its scheduler, each under its name.

Every test first does it the plain way and sees the fault, then with Frostline and sees it gone.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

import frostline as fl

o = torch.optim


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def backward(model):
    loss = (model(torch.linspace(-1, 1, 15).reshape(5, 3)) - 1).square().mean()
    loss.backward()
    return loss


def step(model, optimizer, *, set_to_none=True):
    def closure():
        optimizer.zero_grad(set_to_none=set_to_none)
        return backward(model)

    optimizer.step(closure)
    optimizer.zero_grad(set_to_none=set_to_none)


def by_hand(model, what="0"):
    """What tutorials do."""
    for parameter in model.get_submodule(what).parameters():
        parameter.requires_grad = False


def moved(model, before, name="0.weight"):
    return not torch.equal(model.state_dict()[name], before[name])


def snapshot(model):
    return copy.deepcopy(model.state_dict())


MOVERS = {
    "SGD-decay": functools.partial(o.SGD, weight_decay=0.1),
    "SGD-momentum": functools.partial(o.SGD, momentum=0.9),
    "Adam": o.Adam,
    "AdamW": o.AdamW,
    "RMSprop-momentum": functools.partial(o.RMSprop, momentum=0.9),
}


@pytest.mark.parametrize("build", MOVERS.values(), ids=MOVERS)
def test_frozen_mid_training_then_zero_grad_not_to_none(build):
    def run(freeze):
        model = make_model()
        optimizer = build(model.parameters(), lr=0.1)
        step(model, optimizer, set_to_none=False)
        before = snapshot(model)
        freeze(model, optimizer)
        for _ in range(3):
            step(model, optimizer, set_to_none=False)
        return moved(model, before)

    def with_frostline(model, optimizer):
        fl.freeze(model, "0")
        fl.sync(model, optimizer)

    assert run(lambda model, optimizer: by_hand(model))
    assert not run(with_frostline)
    # The optimizer alone mends a freeze that was made by hand.
    assert not run(lambda model, optimizer: (by_hand(model), fl.sync(model, optimizer)))


def test_frozen_while_gradients_pend():
    def run(freeze):
        model = make_model()
        optimizer = o.SGD(model.parameters(), lr=0.1)
        backward(model)
        before = snapshot(model)
        freeze(model)
        backward(model)
        optimizer.step()
        return moved(model, before)

    assert run(by_hand)
    with pytest.raises(fl.TransitionError):
        run(lambda model: fl.freeze(model, "0"))
    assert not run(lambda model: fl.freeze(model, "0", gradients="drop"))


def test_a_stale_frozen_gradient_inflates_clip_grad_norm():
    def norm(freeze):
        model = make_model()
        backward(model)
        by_hand(model)
        optimizer = o.SGD(model[2].parameters(), lr=0.1)
        freeze(model, optimizer)
        optimizer.zero_grad()
        backward(model)
        return float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))

    clean = norm(lambda model, optimizer: model.zero_grad())
    assert norm(lambda model, optimizer: None) > clean
    assert norm(fl.sync) == clean


def test_way_two_gradients_pile_up_and_are_applied_in_one_lump():
    def lump(join):
        model = make_model()
        optimizer = o.SGD(model[2].parameters(), lr=0.1)
        for _ in range(10):
            step(model, optimizer)
        before = snapshot(model)
        join(model, optimizer)
        optimizer.step()
        return moved(model, before)

    assert lump(lambda m, opt: opt.add_param_group({"params": list(m[0].parameters())}))
    with pytest.raises(fl.TransitionError, match="piled up"):
        lump(fl.sync)
    assert not lump(functools.partial(fl.sync, gradients="drop"))


class FillingMuon(torch.optim.Optimizer):
    """In the manner of Keller Jordan's: a missing gradient is filled with zeros, then decays."""

    def __init__(self, params, lr=0.02, weight_decay=0.1, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(buffer.sign(), alpha=-group["lr"])


@pytest.mark.parametrize(
    "build",
    [functools.partial(o.LBFGS, lr=0.1, max_iter=2), FillingMuon],
    ids=["LBFGS", "Muon"],
)
def test_optimizers_that_write_although_grad_is_none(build):
    def run(freeze, **options):
        model = make_model()
        optimizer = build(model.parameters())
        step(model, optimizer)
        before = snapshot(model)
        freeze(model, optimizer)
        for _ in range(3):
            step(model, optimizer)
        return moved(model, before)

    def with_frostline(model, optimizer):
        fl.freeze(model, "0")
        fl.sync(model, optimizer)

    assert run(lambda model, optimizer: by_hand(model))
    assert not run(with_frostline)
    with pytest.raises(fl.OptimizerError, match="moves parameters that have no gradient"):
        fl.optimizer(build, make_model(), declare_all=True)


LR_ZERO = {
    "Rprop": (functools.partial(o.Rprop, lr=0.0), None),
    "OneCycle": (
        functools.partial(o.SGD, lr=0.0),
        lambda opt: lrs.OneCycleLR(opt, 0.1, total_steps=9, cycle_momentum=False),
    ),
    "Cosine": (
        functools.partial(o.SGD, lr=0.0),
        lambda opt: lrs.CosineAnnealingLR(opt, 4, eta_min=0.01),
    ),
}


@pytest.mark.parametrize(("build", "schedule"), LR_ZERO.values(), ids=LR_ZERO)
def test_lr_zero_is_no_freeze(build, schedule):
    """The linter names it; here: what is frozen instead holds still under the same schedule."""

    def run(freeze):
        model = make_model()
        frozen = fl.freeze(model, "0") if freeze else None
        optimizer = fl.optimizer(build, model, options={"2": {"lr": 0.1}})
        scheduler = schedule(optimizer) if schedule else None
        before = snapshot(model)
        for _ in range(5):
            step(model, optimizer)
            if scheduler:
                scheduler.step()
        if frozen:
            frozen.verify()
        return moved(model, before)

    assert run(freeze=False)
    assert not run(freeze=True)


def test_load_state_dict_with_assign_leaves_the_optimizer_with_dead_tensors():
    def run(mend):
        model = make_model()
        optimizer = o.SGD(model.parameters(), lr=0.1)
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
        mend(model, optimizer)
        before = snapshot(model)
        step(model, optimizer)
        return moved(model, before)

    assert not run(lambda model, optimizer: None)
    assert run(fl.sync)


@pytest.mark.parametrize(
    ("schedule", "error"),
    [
        pytest.param(lambda opt: lrs.LambdaLR(opt, lambda e: 0.9), ValueError, id="Lambda"),
        pytest.param(
            lambda opt: lrs.MultiplicativeLR(opt, lambda e: 0.9), ValueError, id="Multiplicative"
        ),
        pytest.param(
            lambda opt: lrs.CosineAnnealingWarmRestarts(opt, 3), ValueError, id="WarmRestarts"
        ),
        pytest.param(
            lambda opt: lrs.CyclicLR(opt, 0.01, 0.1, 3, cycle_momentum=False),
            ValueError,
            id="Cyclic",
        ),
        pytest.param(
            lambda opt: lrs.OneCycleLR(opt, 0.1, total_steps=9, cycle_momentum=False),
            KeyError,
            id="OneCycle",
        ),
        pytest.param(lambda opt: lrs.ConstantLR(opt, 0.5, total_iters=3), None, id="Constant"),
        pytest.param(lambda opt: lrs.LinearLR(opt, 0.5, total_iters=4), None, id="Linear"),
    ],
)
def test_add_param_group_under_a_live_scheduler(schedule, error):
    def run(build, thaw):
        model = make_model()
        by_hand(model)
        optimizer = build(model)
        scheduler = schedule(optimizer)
        optimizer.step()
        scheduler.step()
        model.requires_grad_(True)
        thaw(model, optimizer, scheduler)
        for _ in range(4):
            optimizer.step()
            scheduler.step()
        return [group["lr"] for group in optimizer.param_groups]

    def plain(model):
        return o.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def add(model, optimizer, scheduler):
        optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.1})

    if error is None:
        old, new = run(plain, add)
        assert new > 1.5 * old, "the group that came late got a rate that nobody asked for"
    else:
        with pytest.raises(error):
            run(plain, add)
    ours = functools.partial(fl.optimizer, o.SGD, lr=0.1, no_decay=[], layer_decay=1.0)
    old, new = run(ours, fl.sync)
    assert old == new


def test_optimizer_resume_is_by_position():
    """The same count with another layer."""

    def trained(frozen):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        fl.freeze(model, frozen)
        optimizer = fl.optimizer(o.AdamW, model)
        step(model, optimizer)
        return model, optimizer

    model, optimizer = trained(["0", "1"])
    torch_state = copy.deepcopy(optimizer.state_dict())
    state = copy.deepcopy(fl.optimizer_state(optimizer, model))
    other, other_optimizer = trained(["0", "2"])
    other_optimizer.load_state_dict(torch_state)  # without a word
    assert other_optimizer.param_groups[0]["param_names"] == ["2.weight", "2.bias"]
    other, other_optimizer = trained(["0", "2"])
    with pytest.raises(fl.OptimizerError, match=r"2\.weight, 2\.bias was in the optimizer"):
        fl.load_optimizer_state(other_optimizer, other, state)


def test_a_parameter_removed_its_state_kept():
    model = make_model()
    optimizer = o.AdamW(model.parameters())
    step(model, optimizer)
    by_hand(model)
    group = optimizer.param_groups[0]
    group["params"] = [p for p in group["params"] if p.requires_grad]
    with pytest.raises(KeyError):
        optimizer.state_dict()
    fl.sync(model, optimizer)
    assert len(optimizer.state_dict()["state"]) == 2


def test_adamw_state_stays_allocated_after_freezing_and_comes_back_old():
    model = make_model()
    optimizer = fl.optimizer(o.AdamW, model)
    for _ in range(3):
        step(model, optimizer)
    frozen = fl.freeze(model, "0")
    assert model[0].weight in optimizer.state  # allocated, for nothing
    fl.sync(model, optimizer)
    assert model[0].weight not in optimizer.state
    frozen.undo()
    fl.sync(model, optimizer)
    step(model, optimizer)
    assert float(optimizer.state[model[0].weight]["step"]) == 1
    assert float(optimizer.state[model[2].weight]["step"]) == 4


def test_what_is_thawed_never_trains():
    """timm and the Hugging Face Trainer: what a callback thaws is in no group."""

    def run(mend):
        model = make_model()
        fl.freeze(model, "0")
        optimizer = fl.optimizer(o.AdamW, model, lr=0.1)
        fl.unfreeze(model, "0")
        mend(model, optimizer)
        before = snapshot(model)
        step(model, optimizer)
        return moved(model, before)

    assert not run(lambda model, optimizer: None)
    assert run(fl.sync)


def test_fused_sgd_fails_where_only_some_have_a_momentum():
    def run(mend):
        model = make_model()
        fl.freeze(model, "0")
        optimizer = fl.optimizer(o.SGD, model, lr=0.1, momentum=0.9, fused=True, declare_all=True)
        step(model, optimizer)
        fl.unfreeze(model, "0")
        mend(model, optimizer)
        step(model, optimizer)

    with pytest.raises(TypeError):
        run(lambda model, optimizer: None)
    run(fl.sync)
