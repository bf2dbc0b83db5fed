"""What every schedule owes, whatever its method: the same checks on each registered name."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch
from scheduling import BUSY, PER_EPOCH, STEPS, Run, busy

from frostline.schedules import Schedule, from_plain, parse, registry, to_plain, to_yaml

every_method = pytest.mark.parametrize("name", sorted(registry))
every_option = pytest.mark.parametrize(
    "made", [registry.__getitem__, lambda n: lambda: busy(n)], ids=["defaults", "busy"]
)
# They choose once, at the start.
STATIC = {"spectrum", "surgical"}


def test_every_method_is_tried() -> None:
    assert set(BUSY) == set(registry)


@every_method
def test_it_keeps_the_contract_in_form(name: str) -> None:
    schedule = registry[name]()
    assert isinstance(schedule, Schedule)
    assert schedule.name == name
    with pytest.raises(AttributeError):
        schedule.name_of_another_field = 1  # type: ignore[attr-defined]


@every_method
@every_option
def test_it_is_written_down_and_read_back(name: str, made) -> None:
    schedule = made(name)()
    assert from_plain(json.loads(json.dumps(to_plain(schedule)))) == schedule
    assert parse(to_yaml(schedule)) == schedule


@every_method
def test_decisions_are_pure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = registry[name]
    decide = method.decide
    asked = []

    def decide_twice(self, progress, signals, state):
        before = copy.deepcopy(state)
        chance = random.getstate(), torch.get_rng_state()
        first, second = (decide(self, progress, signals, state) for _ in range(2))
        assert_same(state, before)
        assert random.getstate() == chance[0]
        assert torch.equal(torch.get_rng_state(), chance[1])
        assert_same(vars(first), vars(second))
        asked.append(first)
        return first

    monkeypatch.setattr(method, "decide", decide_twice)
    run = Run(busy(name)).until(STEPS)
    assert len(asked) > STEPS
    assert run.done == STEPS


@every_method
def test_it_does_the_same_each_time(name: str) -> None:
    one, other = (Run(busy(name)).until(STEPS) for _ in range(2))
    assert one.freezer.events == other.freezer.events
    assert one.bits() == other.bits()
    if name not in STATIC:
        assert len({row.frozen for row in one.freezer.timeline()}) > 1


@every_method
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_it_resumes_at_every_step(name: str, optimizer) -> None:
    options = {"optimizer": optimizer, "scheduler": True}
    straight, pieced = Run(busy(name), **options), Run(busy(name), **options)
    while straight.done < STEPS:
        pieced = Run(busy(name), **options).load(pieced.save())
        straight.step()
        pieced.step()
        assert pieced.bits() == straight.bits(), straight.done
    assert pieced.freezer.events == straight.freezer.events
    assert pieced.freezer.timeline() == straight.freezer.timeline()


@every_method
def test_a_killed_run_ends_like_one_that_was_not(name: str) -> None:
    chance = random.Random(name)
    saved_at = chance.randrange(1, STEPS - 1)
    killed_at = chance.randrange(saved_at, STEPS)
    killed = Run(busy(name)).until(saved_at)
    saved = killed.save()
    killed.until(killed_at)
    again = Run(busy(name)).load(saved).until(STEPS)
    assert again.bits() == Run(busy(name)).until(STEPS).bits()


# In so short a run their prefix rests for longer than it takes to record it.
PREFIX = {
    "alpha", "autofreeze", "explicit", "gradual-unfreeze", "lpft", "plasticity", "surgical",
}  # fmt: skip


@every_method
def test_it_does_the_same_under_replay(name: str) -> None:
    plain = Run(busy(name)).until(STEPS)
    replayed = Run(busy(name), replay=True).until(STEPS)
    assert replayed.replayer.exact
    assert replayed.bits() == plain.bits()
    assert replayed.freezer.events == plain.freezer.events
    if name in PREFIX:
        assert replayed.replayer.stats.replayed > 0, replayed.replayer.declined


@every_method
@every_option
def test_the_invariants_hold_after_every_step(name: str, made) -> None:
    run = Run(made(name)(), scheduler=True)
    freezer = run.freezer
    named = dict(run.model.named_parameters())
    owner = {p: unit.name for unit in freezer.layout.units for p in unit.parameters}
    assert sorted(owner) == sorted(named)
    while run.done < STEPS:
        frozen = set(freezer.frozen)
        before = {n: p.detach().clone() for n, p in named.items() if owner[n] in frozen}
        resting = resting_modules(run.model)
        buffers = [b.clone() for module in resting for b in module.buffers()]
        run.step()
        for parameter_name, value in before.items():
            assert torch.equal(named[parameter_name], value), parameter_name
        after = [b for module in resting for b in module.buffers()]
        assert all(map(torch.equal, buffers, after))
        freezer.verify()
        assert freezer.trains, "everything is frozen"
        trainable = {n for n, p in named.items() if p.requires_grad}
        assert trainable == {n for n in named if owner[n] in set(freezer.trains)}
        assert all(named[n].grad is None for n in named if n not in trainable)
        held = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
        for parameter_name in trainable:
            assert held.count(id(named[parameter_name])) == 1
        assert len(run.optimizer.param_groups) == 1


@every_method
def test_close_leaves_the_model_as_it_was(name: str) -> None:
    run = Run(busy(name)).until(PER_EPOCH + 1)
    run.freezer.close()
    assert all(p.requires_grad for p in run.model.parameters())
    assert not any(m._forward_pre_hooks for m in run.model.modules())
    assert not run.optimizer._optimizer_step_pre_hooks
    assert not run.optimizer._optimizer_step_post_hooks


def resting_modules(model):
    """Modules of which every parameter is frozen."""
    owners = [m for m in model.modules() if any(True for _ in m.parameters())]
    return [m for m in owners if not any(p.requires_grad for p in m.parameters())]


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    else:
        assert one == other
