"""Runs under a freezer: a small model, its data, and how to save, kill and resume them."""

from __future__ import annotations

import io
from contextlib import nullcontext

import torch
from zoo import Net

import frostline as fl
from frostline.freezer import Freezer
from frostline.replay import Replayer
from frostline.schedules import registry

STEPS, PER_EPOCH, BATCHES = 24, 6, 3

PHASES = [
    {"epoch": 0, "train": ["head", "layers.3"], "rates": {"layers.3": 0.5}},
    {"epoch": 1, "train": ["**"]},
    {"stall": 1, "train": ["head", "layers.2.norm", "stem"]},
    {"step": 20, "train": ["head"]},
]
# Options with which each method has something to do in so short a run.
BUSY = {
    "explicit": {"phases": PHASES},
    "gradual-unfreeze": {},
    "lpft": {"patience": 1},
    "freezeout": {},
    "alpha": {"gradient_gate": True},
    "autofreeze": {"looks_per_epoch": 3},
    "plasticity": {"period": 2, "window": 2, "patience": 1, "tolerance": 1.0, "renew": 3},
    "lisa": {"period": 2},
    "badam": {"steps_per_block": 3},
    "apf": {"period": 2, "threshold": 0.8, "decay": 0.5},
    "autorgn": {"batches": 2, "freeze_below": 0.2, "every_epochs": 1},
    "spectrum": {},
    "surgical": {"blocks": (1, -1)},
}


def busy(name):
    return registry[name](**BUSY[name])


def batch(step):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(12, 8, generator=generator)
    return inputs, (inputs.sum(1) > 0).long() + (inputs[:, 0] > 0).long()


class Run:
    """A run that can be saved after any step, and built anew from what was saved."""

    def __init__(
        self, schedule, *, optimizer=torch.optim.AdamW, scheduler=False, replay=False, **options
    ):
        torch.manual_seed(3)
        self.model = Net(4)
        self.optimizer = fl.optimizer(optimizer, self.model, lr=1e-2, weight_decay=0.1)
        self.scheduler = None
        if scheduler:
            self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        given = {"total_steps": STEPS, "steps_per_epoch": PER_EPOCH, **options}
        self.replayer = Replayer(self.model) if replay else None
        self.freezer = Freezer(self.model, self.optimizer, self.scheduler, schedule, **given)

    @property
    def done(self):
        return self.freezer.position.step

    def step(self):
        place = self.done % BATCHES
        inputs, targets = batch(place)
        ids = range(place * len(inputs), (place + 1) * len(inputs))
        torch.manual_seed(self.done)  # dropout
        self.model.train()
        self.optimizer.zero_grad()
        with nullcontext() if self.replayer is None else self.replayer.samples(ids):
            loss = torch.nn.functional.cross_entropy(self.freezer.model(inputs), targets)
        loss.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.freezer.step(loss)
        if self.done % PER_EPOCH == 0:
            # A metric that gets no better from the second epoch on.
            self.model.eval()
            self.freezer.epoch(min(0.5, self.done / STEPS))

    def until(self, step):
        while self.done < step:
            self.step()
        return self

    def save(self):
        state = {"model": self.model.state_dict(), "freezer": self.freezer.state_dict()}
        if self.scheduler is not None:
            state["scheduler"] = self.scheduler.state_dict()
        file = io.BytesIO()
        torch.save(state, file)
        return file.getvalue()

    def load(self, saved):
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.freezer.load_state_dict(state["freezer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        return self

    def bits(self):
        return {name: fl.fingerprint(tensor) for name, tensor in self.model.state_dict().items()}
