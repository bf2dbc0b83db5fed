"""The invariants of a run, over random models and random sequences of what a run does.

After every step of every sequence: frozen values and buffers are bitwise the same (1), frozen
parameters have no gradient (2), frozen modules run in eval mode (3), each trainable parameter is
in exactly one group (5), undo restores what was there (6), pending gradients are refused (7), and
a run that was saved and loaded goes on bit for bit (8).
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn
from torch.optim import lr_scheduler as lrs
from zoo import models

import frostline as fl

SELECTORS = st.sampled_from(
    ["**", "0", "1", "2", "*.weight", "**.bias", "type:Linear", "type:BatchNorm1d", "last:1"]
)
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.3}),
    "sgd-fused": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.3, "fused": True}),
    "adam-foreach": (torch.optim.Adam, {"weight_decay": 0.3, "foreach": True}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.3}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9, "weight_decay": 0.3}),
}
SCHEDULERS = {
    "step": lambda optimizer: lrs.StepLR(optimizer, 2),
    "lambda": lambda optimizer: lrs.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    "linear": lambda optimizer: lrs.LinearLR(optimizer, 0.5, total_iters=5),
    "one-cycle": lambda optimizer: lrs.OneCycleLR(
        optimizer, 0.05, total_steps=1000, cycle_momentum=False
    ),
}


class Run(RuleBasedStateMachine):
    @initialize(
        model=models(),
        optimizer=st.sampled_from(sorted(OPTIMIZERS)),
        scheduler=st.sampled_from(sorted(SCHEDULERS)),
        declare_all=st.booleans(),
        layer_decay=st.sampled_from([None, 0.5]),
    )
    def begin(self, model, optimizer, scheduler, declare_all, layer_decay):
        torch.manual_seed(0)
        model[-1].requires_grad_(True)
        self.model, self.untrained = model, copy.deepcopy(model)
        self.kinds = (optimizer, scheduler, declare_all, layer_decay)
        self.optimizer, self.scheduler = self.build(model)
        self.handles, self.befores = [], []

    def build(self, model):
        optimizer, scheduler, declare_all, layer_decay = self.kinds
        cls, options = OPTIMIZERS[optimizer]
        built = fl.optimizer(
            cls, model, lr=0.01, layer_decay=layer_decay, declare_all=declare_all, **options
        )
        return built, SCHEDULERS[scheduler](built)

    @property
    def trains(self):
        return any(p.requires_grad for p in self.model.parameters())

    def transition(self, call, selector):
        """Freeze or thaw as a loop would: at a step boundary, then sync."""
        before = snapshot(self.model)
        pending = any(p.grad is not None and p.grad.any() for p in self.model.parameters())
        try:
            handle = call(self.model, selector)
            assert not pending
        except (fl.PlanError, fl.SelectorError):  # nothing left to train, or no such part
            assert snapshot(self.model) == before
            return
        except fl.TransitionError:
            assert pending
            assert snapshot(self.model) == before
            handle = call(self.model, selector, gradients="drop")
        self.handles.append(handle)
        self.befores.append(before)
        fl.sync(self.model, self.optimizer, self.scheduler, gradients="drop")

    @rule(selector=SELECTORS)
    def freeze(self, selector):
        self.transition(fl.freeze, selector)

    @rule(selector=SELECTORS)
    def unfreeze(self, selector):
        self.transition(fl.unfreeze, selector)

    @precondition(lambda self: self.handles)
    @rule()
    def undo_the_last(self):
        # Modes and forwards in between changed the modules' flags on purpose; flags and hooks
        # are what the call has to restore.
        self.handles.pop().undo()
        flags, _, hooks = self.befores.pop()
        assert snapshot(self.model)[0] == flags
        assert snapshot(self.model)[2] == hooks
        fl.sync(self.model, self.optimizer, self.scheduler, gradients="drop")

    @precondition(lambda self: len(self.handles) > 1)
    @rule()
    def undo_the_first(self):
        self.handles.pop(0).undo()
        # What later calls found before them included this one, so their records are void.
        self.handles, self.befores = [], []
        fl.sync(self.model, self.optimizer, self.scheduler, gradients="drop")

    @rule(mode=st.booleans())
    def train_or_eval(self, mode):
        self.model.train(mode)

    @precondition(lambda self: self.trains)
    @rule()
    def backward(self):
        self.model(torch.randn(4, 8)).square().mean().backward()

    @precondition(lambda self: self.trains)
    @rule(set_to_none=st.booleans())
    def step(self, set_to_none):
        self.optimizer.zero_grad(set_to_none=set_to_none)
        self.model(torch.randn(4, 8)).square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()

    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none):
        self.optimizer.zero_grad(set_to_none=set_to_none)

    @rule()
    def load_its_own_weights(self):
        self.model.load_state_dict(copy.deepcopy(self.model.state_dict()))

    @rule()
    def copy_runs_alike(self):
        """A deepcopy has the pins: its frozen modules rest in train mode too."""
        assert_frozen_modules_rest(copy.deepcopy(self.model))

    @precondition(lambda self: any(handle.names for handle in self.handles) and self.trains)
    @rule()
    def save_load_and_go_on(self):
        handle = next(handle for handle in self.handles if handle.names)
        self.optimizer.zero_grad()
        saved = copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "freeze": handle.state_dict(),
                "optimizer": fl.optimizer_state(self.optimizer, self.model),
                "scheduler": self.scheduler.state_dict(),
            }
        )
        again = copy.deepcopy(self.untrained)
        again.load_state_dict(saved["model"])
        fl.resume_freeze(again, saved["freeze"])
        optimizer, scheduler = self.build(again)
        fl.load_optimizer_state(optimizer, again, saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        go_on(self.model, self.optimizer, self.scheduler)
        go_on(again, optimizer, scheduler)
        for (name, one), other in zip(
            self.model.state_dict().items(), again.state_dict().values(), strict=True
        ):
            assert torch.equal(one, other), name

    @invariant()
    def holds(self):
        if not hasattr(self, "optimizer"):
            return
        for handle in self.handles:
            if handle.names:
                handle.verify()
        for name, parameter in self.model.named_parameters():
            assert parameter.requires_grad or parameter.grad is None, name
        held = [id(p) for group in self.optimizer.param_groups for p in group["params"]]
        wanted = {id(p) for p in self.model.parameters() if p.requires_grad}
        assert len(held) == len(set(held))
        assert wanted <= set(held)
        self.optimizer.state_dict()
        assert_frozen_modules_rest(self.model)


def snapshot(model):
    return (
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
    )


def assert_frozen_modules_rest(model):
    """Run in train mode, look at the modes from inside, and leave no trace."""
    ran = {}
    watches = [
        module.register_forward_hook(lambda m, args, out: ran.update({id(m): m.training}))
        for module in model.modules()
    ]
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(), torch.no_grad():
        model.train()
        model(torch.randn(4, 8))
        for watch in watches:
            watch.remove()
        for module in model.modules():
            if module._forward_pre_hooks and id(module) in ran:
                assert not ran[id(module)]
                assert not any(p.requires_grad for p in module.parameters())
        for buffer, content in buffers:
            buffer.copy_(content)
    for module, mode in modes:
        module.training = mode


def go_on(model, optimizer, scheduler):
    torch.manual_seed(1)
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        scheduler.step()


def test_the_check_of_modes_can_fail():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    fl.freeze(model, model[0])
    model[0].weight.requires_grad_(True)
    with pytest.raises(AssertionError):
        assert_frozen_modules_rest(model)


TestRun = Run.TestCase
# Twice the profile's count: `make test-all` has to see 1,000 sequences.
TestRun.settings = settings(max_examples=2 * settings.default.max_examples, stateful_step_count=15)
