"""After a sync every group's schedule is the one it would have had if known from the start."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

import frostline as fl

STEPS = 12


def count(optimizer):
    return len(optimizer.param_groups)


def each(optimizer, value):
    """A list with a value of its own for each group."""
    return [value * (1 + index) for index in range(count(optimizer))]


def lambdas(optimizer):
    return [lambda epoch, k=k: 1 / (1 + epoch + k) for k in range(count(optimizer))]


def sequence(optimizer):
    parts = [
        lrs.ConstantLR(optimizer, 0.5, total_iters=3),
        lrs.LinearLR(optimizer, 0.25, total_iters=3),
        lrs.ExponentialLR(optimizer, 0.9),
    ]
    return lrs.SequentialLR(optimizer, parts, milestones=[3, 6])


def chain(optimizer):
    return lrs.ChainedScheduler(
        [lrs.ConstantLR(optimizer, 0.5, total_iters=4), lrs.ExponentialLR(optimizer, 0.9)]
    )


SCHEDULERS = {
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda epoch: 0.9**epoch),
    "LambdaLR-list": lambda o: lrs.LambdaLR(o, lambdas(o)),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda epoch: 0.9),
    "MultiplicativeLR-list": lambda o: lrs.MultiplicativeLR(o, lambdas(o)),
    "StepLR": lambda o: lrs.StepLR(o, 2, gamma=0.5),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [1, 4, 9], gamma=0.5),
    "ConstantLR": lambda o: lrs.ConstantLR(o, 0.5, total_iters=5),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.25, total_iters=6),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.8),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 8, eta_min=0.001),
    "WarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 3, T_mult=2, eta_min=0.001),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 8, power=2.0),
    "CyclicLR": lambda o: lrs.CyclicLR(o, each(o, 0.01), each(o, 0.1), step_size_up=3),
    "CyclicLR-exp": lambda o: lrs.CyclicLR(o, 0.01, 0.1, 3, mode="exp_range", gamma=0.9),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    "OneCycleLR-list": lambda o: lrs.OneCycleLR(
        o, each(o, 0.1), total_steps=STEPS + 1, three_phase=True, anneal_strategy="linear"
    ),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "ReduceLROnPlateau-list": lambda o: lrs.ReduceLROnPlateau(
        o, factor=0.5, patience=0, min_lr=each(o, 0.02)
    ),
    "SequentialLR": sequence,
    "ChainedScheduler": chain,
}

LAYOUTS = {
    "joins-the-group": {},
    "own-group-by-layer": {"layer_decay": 0.5},
    "own-group-by-options": {"options": {"0": {"lr": 0.3, "momentum": 0.5}}},
    "own-group-by-kind": {"no_decay": ["bias"], "weight_decay": 0.1},
}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def rates(optimizer):
    return {
        group["name"]: (float(group["lr"]), group.get("momentum"), group.get("betas"))
        for group in optimizer.param_groups
    }


class Run:
    """A run of a few steps; what it freezes and thaws is synchronised, unless all is declared."""

    def __init__(self, make_optimizer, make_scheduler, *, declare_all):
        self.model = make_model()
        self.frozen = fl.freeze(self.model, ["0", "2"])
        self.optimizer = make_optimizer(self.model, declare_all)
        self.scheduler = make_scheduler(self.optimizer)
        self.declare_all = declare_all

    def step(self, at, transitions):
        if at in transitions:
            transitions[at](self)
            if not self.declare_all:
                fl.sync(self.model, self.optimizer, self.scheduler)
        self.model(torch.ones(2, 3)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        plateau = isinstance(self.scheduler, lrs.ReduceLROnPlateau)
        self.scheduler.step(*[1.0] * plateau)
        return rates(self.optimizer)


def compare(make_optimizer, make_scheduler, transitions):
    late = Run(make_optimizer, make_scheduler, declare_all=False)
    known = Run(make_optimizer, make_scheduler, declare_all=True)
    seen = set()
    for at in range(STEPS):
        got, wanted = late.step(at, transitions), known.step(at, transitions)
        assert got == wanted, f"step {at}"
        seen.add(tuple(got.items()))
    assert len(seen) > 1, "the schedule moved nothing, so this shows nothing"
    return late


def thaw(what):
    return lambda run: fl.unfreeze(run.model, what)


@pytest.mark.parametrize("at", [0, 1, 4, 7])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("make_scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_rates_after_a_thaw_are_those_of_a_scheduler_that_knew_all_groups(
    make_scheduler, layout, at
):
    def make_optimizer(model, declare_all):
        return fl.optimizer(
            torch.optim.SGD,
            model,
            declare_all=declare_all,
            **{"lr": 0.1, "momentum": 0.9} | layout,
        )

    late = compare(make_optimizer, make_scheduler, {at: thaw("0")})
    trained = {n for group in late.optimizer.param_groups for n in group["param_names"]}
    assert trained == {"0.weight", "0.bias", "4.weight", "4.bias"}


@pytest.mark.parametrize("make_scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_rates_through_many_transitions(make_scheduler):
    def make_optimizer(model, declare_all):
        return fl.optimizer(
            torch.optim.AdamW, model, lr=0.1, layer_decay=0.5, declare_all=declare_all
        )

    def freeze_head(run):
        run.head = fl.freeze(run.model, "4")

    transitions = {
        1: thaw("2"),
        3: freeze_head,
        5: thaw("0"),
        7: lambda run: run.head.undo(),
        9: lambda run: run.frozen.undo(),
    }
    compare(make_optimizer, make_scheduler, transitions)


@pytest.mark.parametrize("make_scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_rates_that_are_tensors(make_scheduler):
    def make_optimizer(model, declare_all):
        return fl.optimizer(
            torch.optim.SGD,
            model,
            lr=torch.tensor(0.1),
            momentum=0.9,
            no_decay=["bias"],
            options={"0": {"lr": torch.tensor(0.3)}},
            declare_all=declare_all,
        )

    late = compare(make_optimizer, make_scheduler, {4: thaw("0")})
    held = [group["lr"] for group in late.optimizer.param_groups]
    assert all(isinstance(rate, torch.Tensor) for rate in held)
    assert len({id(rate) for rate in held}) == len(held)


def test_a_thawed_parameter_is_stepped_with_its_scheduled_rate():
    model = make_model()
    fl.freeze(model, "0")
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=1.0, layer_decay=0.5)
    scheduler = lrs.LinearLR(optimizer, start_factor=0.5, total_iters=4)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    fl.unfreeze(model, "0")
    fl.sync(model, optimizer, scheduler)
    before = model[0].bias.detach().clone()
    model[0].bias.grad = torch.ones_like(model[0].bias)
    optimizer.step()
    # Layer 0 of three trains at a quarter of the rate; the warm-up is at three quarters.
    torch.testing.assert_close(before - model[0].bias, torch.full((4,), 0.1875))


@pytest.mark.parametrize("make_scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_hand_built_optimizer_keeps_its_schedule(make_scheduler):
    def make_optimizer(model, declare_all):
        held = [p for p in model.parameters() if p.requires_grad or declare_all]
        optimizer = torch.optim.SGD(held, lr=0.1, momentum=0.9)
        optimizer.param_groups[0]["name"] = "all"
        return optimizer

    late = compare(make_optimizer, make_scheduler, {4: thaw("0")})
    assert len(late.optimizer.param_groups[0]["params"]) == 4


def add_group(model, optimizer):
    optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.3})


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        # ReduceLROnPlateau with one min_lr lengthens its list by itself; the others that fit
        # compute a rate from the present one and keep no list.
        pytest.param(
            name,
            name in ("ReduceLROnPlateau", "StepLR", "MultiStepLR", "ExponentialLR", "PolynomialLR"),
            id=name,
        )
        for name in SCHEDULERS
    ],
)
def test_a_group_added_under_a_live_scheduler_is_named(name, fits):
    model = make_model()
    fl.freeze(model, "0")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    optimizer.defaults["momentum"] = optimizer.param_groups[0]["momentum"] = 0.9
    scheduler = SCHEDULERS[name](optimizer)
    fl.unfreeze(model, "0")
    add_group(model, optimizer)
    if fits:
        fl.sync(model, optimizer, scheduler)
    else:
        with pytest.raises(fl.OptimizerError, match=r"knows 1 groups .* has 2"):
            fl.sync(model, optimizer, scheduler)


def test_a_scheduler_of_another_optimizer_is_named():
    model = make_model()
    one, other = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    with pytest.raises(fl.OptimizerError, match="StepLR drives another optimizer"):
        fl.sync(model, one, lrs.StepLR(other, 1))
