"""Factors on learning rates: they act in the step, and nobody else sees them."""

from __future__ import annotations

import functools

import pytest
import torch
from syncing import loss_of, make_model, values
from torch.optim import lr_scheduler

from frostline.freezer.rates import RateFactors

OPTIMIZERS = {
    "SGD": torch.optim.SGD,
    "SGD-momentum": functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
    "Adam-fused": functools.partial(torch.optim.Adam, fused=True),
    "AdamW": functools.partial(torch.optim.AdamW, weight_decay=0.1),
    "AdamW-tensor": lambda groups, lr: torch.optim.AdamW(groups, lr=torch.tensor(lr)),
    "RMSprop": torch.optim.RMSprop,
    "Adafactor": torch.optim.Adafactor,
    "ASGD": torch.optim.ASGD,
}
FACTORS = {"low": 0.25, "high": 2.0}


def scaled(optimizer, model):
    rates = RateFactors(optimizer)
    first, second, _ = model.parameters()
    rates.units = {id(first): "low", id(second): "high"}
    rates.factors = dict(FACTORS)
    rates.install()
    return rates


def step(model, optimizer):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_it_is_what_groups_with_those_rates_would_do(build) -> None:
    model, reference = make_model(), make_model()
    optimizer = build(list(model.parameters()), lr=0.125)
    scaled(optimizer, model)
    low, high, rest = reference.parameters()
    by_hand = build(
        [{"params": [low], "lr": _like(build, 0.125 * 0.25)},
         {"params": [high], "lr": _like(build, 0.125 * 2.0)}, {"params": [rest]}],
        lr=0.125,
    )  # fmt: skip
    for _ in range(4):
        step(model, optimizer)
        step(reference, by_hand)
    assert all(map(torch.equal, values(model).values(), values(reference).values()))


def _like(build, rate):
    return torch.tensor(rate) if build is OPTIMIZERS["AdamW-tensor"] else rate


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.ExponentialLR(o, 0.5),  # multiplies the rate that it finds
        lambda o: lr_scheduler.StepLR(o, 1, 0.5),
        lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.5**n),
    ],
)
def test_a_scheduler_never_reads_a_factor(schedule) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = schedule(optimizer)
    rates = scaled(optimizer, model)
    seen, used = [], []
    rates.remove()
    rates.install()
    optimizer.register_step_pre_hook(
        lambda o, *_: used.append([group["lr"] for group in o.param_groups])
    )
    for _ in range(3):
        step(model, optimizer)
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [0.5, 0.25, 0.125]
    assert used == [[0.25, 2.0, 1.0], [0.125, 1.0, 0.5], [0.0625, 0.5, 0.25]]
    assert len(optimizer.param_groups) == 1


def test_what_a_step_writes_into_its_group_is_kept() -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["k"] = group.get("k", 0) + 1
            return super().step(closure)

    model = make_model()
    optimizer = Counting(model.parameters(), lr=0.1)
    scaled(optimizer, model)
    group = optimizer.param_groups[0]
    for _ in range(3):
        step(model, optimizer)
    assert optimizer.param_groups[0] is group
    assert group["k"] == 3
    assert group["lr"] == 0.1


def test_a_step_that_raises_leaves_the_groups_to_be_settled() -> None:
    class Failing(torch.optim.SGD):
        fails = True

        def step(self, closure=None):
            if self.fails:
                raise RuntimeError("out of memory")
            return super().step(closure)

    model = make_model()
    optimizer = Failing(model.parameters(), lr=0.1)
    rates = scaled(optimizer, model)
    with pytest.raises(RuntimeError, match="out of memory"):
        step(model, optimizer)
    rates.settle()
    assert [len(group["params"]) for group in optimizer.param_groups] == [3]
    optimizer.fails = False
    step(model, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]


def test_names_in_the_groups_go_with_their_parameters() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    scaled(optimizer, model)
    seen = []
    optimizer.register_step_pre_hook(
        lambda o, *_: seen.append([group["param_names"] for group in o.param_groups])
    )
    step(model, optimizer)
    assert seen == [[["0.weight"], ["2.weight"], ["3.weight"]]]
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "2.weight", "3.weight"]
