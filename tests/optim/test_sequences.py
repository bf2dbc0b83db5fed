"""Random sequences of what a training loop does: the groups stay right, the frozen stays still."""

from __future__ import annotations

import copy
import warnings

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import nn
from torch.optim import lr_scheduler as lrs

import frostline as fl

PARTS = ["stem", "mid.0", "mid.1", "head", "bias", "mid.1.weight"]
OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "SGD-fused": (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    "AdamW": (torch.optim.AdamW, {}),
    "AdamW-foreach": (torch.optim.AdamW, {"foreach": True}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.5}),
    "Rprop": (torch.optim.Rprop, {}),
}
SCHEDULERS = [
    lambda o: lrs.LinearLR(o, 0.5, total_iters=5),
    lambda o: lrs.LambdaLR(o, [lambda e, k=k: 0.9 ** (e + k) for k in range(len(o.param_groups))]),
    lambda o: lrs.OneCycleLR(o, 0.1, total_steps=1000, cycle_momentum=False),
    lambda o: lrs.ExponentialLR(o, 0.95),
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(2, 3)
        self.mid = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.mid[1].weight = self.mid[0].weight  # tied
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.stem(x)
        for part in self.mid:
            x = torch.tanh(part(x))
        return self.head(self.norm(x))


class Loop(RuleBasedStateMachine):
    @initialize(
        kind=st.sampled_from(sorted(OPTIMIZERS)),
        schedule=st.sampled_from(SCHEDULERS),
        by_hand=st.booleans(),
        layer_decay=st.sampled_from([None, 0.5]),
        declare_all=st.booleans(),
        frozen=st.sampled_from([None, *PARTS]),
    )
    def build(self, kind, schedule, by_hand, layer_decay, declare_all, frozen):
        torch.manual_seed(0)
        self.model, self.handles = Net(), []
        cls, options = OPTIMIZERS[kind]
        if frozen:
            self.handles.append(fl.freeze(self.model, frozen))
        if by_hand:
            trains = [p for p in self.model.parameters() if p.requires_grad]
            self.optimizer = cls(trains, lr=0.1, **options)
        else:
            self.optimizer = fl.optimizer(
                cls,
                self.model,
                lr=0.1,
                layer_decay=layer_decay,
                no_decay=["bias", "norm"] if kind != "Rprop" else (),
                declare_all=declare_all,
                **options,
            )
        self.scheduler = schedule(self.optimizer)
        self.declare_all = declare_all and not by_hand

    def sync(self, state="fresh"):
        fl.sync(self.model, self.optimizer, self.scheduler, state=state)

    @rule(part=st.sampled_from(PARTS))
    def freeze(self, part):
        self.model.zero_grad()
        try:
            self.handles.append(fl.freeze(self.model, part))
        except fl.PlanError:  # nothing would be left
            return
        self.sync()

    @rule(part=st.sampled_from(PARTS))
    def unfreeze(self, part):
        self.model.zero_grad()
        self.handles.append(fl.unfreeze(self.model, part))
        self.sync()

    @rule(index=st.integers(0, 20))
    def undo(self, index):
        self.model.zero_grad()
        if self.handles:
            self.handles.pop(index % len(self.handles)).undo()
        self.sync()

    @rule()
    def reassign(self):
        self.model.zero_grad()
        while self.handles:  # a handle that lives on keeps the dead tensors from being told
            self.handles.pop().undo()
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(state, assign=True)
        self.model.mid[1].weight = self.model.mid[0].weight
        self.sync()

    @rule(set_to_none=st.booleans())
    def step(self, set_to_none):
        frozen = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.model(torch.ones(3, 2)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=set_to_none)
        for name, parameter in self.model.named_parameters():
            assert parameter.requires_grad or torch.equal(parameter, frozen[name]), name

    @rule()
    def schedule(self):
        self.optimizer.step()
        with warnings.catch_warnings():
            # torch's own note after a deepcopy, which loses the mark that it leaves on step().
            warnings.simplefilter("ignore", UserWarning)
            self.scheduler.step()

    @rule()
    def state_dict_round_trip(self):
        self.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))

    @rule()
    def round_trip_by_name(self):
        before = copy.deepcopy(self.optimizer.state_dict())
        state = copy.deepcopy(fl.optimizer_state(self.optimizer, self.model))
        fl.load_optimizer_state(self.optimizer, self.model, state)
        assert str(before) == str(self.optimizer.state_dict())

    @rule()
    def copied(self):
        while self.handles:  # a handle that lives on keeps the dead tensors from being told
            self.handles.pop().undo()
        self.sync()
        self.model, self.optimizer, self.scheduler = copy.deepcopy(
            (self.model, self.optimizer, self.scheduler)
        )

    @invariant()
    def covered(self):
        if not hasattr(self, "optimizer"):
            return
        held = [id(p) for group in self.optimizer.param_groups for p in group["params"]]
        assert len(held) == len(set(held))
        trains = {id(p) for p in self.model.parameters() if p.requires_grad}
        declared = {id(p) for p in self.model.parameters()} if self.declare_all else trains
        assert trains <= set(held) <= declared
        assert {id(p) for p in self.optimizer.state} <= set(held)
        for parameter in self.model.parameters():
            assert parameter.requires_grad or parameter.grad is None
        groups = self.optimizer.param_groups
        assert len(self.scheduler.base_lrs) == len(groups)
        for group in groups if "param_names" in groups[0] else ():
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                assert self.model.get_parameter(name) is parameter


TestLoop = Loop.TestCase
TestLoop.settings = settings(stateful_step_count=15)
