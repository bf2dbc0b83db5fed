"""Random sequences of freeze, thaw, step, save and load on two ranks, against one process."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parallel_runs import bits, loss_of, network
from ranking import Party
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from frostline.schedules import Decision, Progress, State, Traits
from frostline.schedules.base import Signals

UNITS = ("0", "1", "2", "3", "4")
Recipe = Literal["freezer", "wrap all"]

subsets = st.lists(st.sampled_from(UNITS), min_size=1, max_size=4, unique=True)
scripts = st.lists(
    st.one_of(subsets, st.sampled_from(["step", "save", "load", "resume"])), min_size=4, max_size=12
)


class Run:
    """A run of which the script is carried out; in one process, or as one rank of two.

    Args:
        shares: ranks whose shares of a batch are computed here.
        wrapped: whether there is another process that computes the others.
        recipe: ``freezer``: a freezer carries out the transitions. ``wrap all``: bare calls do,
            under a wrapper that was built while all trained.
    """

    def __init__(self, shares: list[int], *, wrapped: bool, recipe: Recipe) -> None:
        self.shares, self.wrapped, self.recipe = shares, wrapped, recipe
        Script.train = list(UNITS)
        self.step_number = 0
        self.saved: dict[str, Any] | None = None
        self.build()

    def build(self) -> None:
        self.net = network()
        self.optimizer = fl.optimizer(
            torch.optim.AdamW, self.net, lr=0.02, weight_decay=0.1, declare_all=True
        )
        self.model: nn.Module = self.net
        if self.wrapped:
            self.model = DistributedDataParallel(
                self.net, find_unused_parameters=self.recipe == "wrap all"
            )
        if self.recipe == "freezer":
            self.freezer = fl.Freezer(self.model, self.optimizer, schedule=Script())

    def follow(self, script: list[Any]) -> None:
        for act in script:
            if isinstance(act, list):
                Script.train = act
                if self.recipe == "wrap all":
                    self.move(act)
            elif act == "step":
                self.step()
            elif act == "save":
                self.saved = self.state()
            elif self.saved is not None:
                if act == "resume":
                    self.build()
                self.load(copy.deepcopy(self.saved))

    def move(self, train: list[str]) -> None:
        rules = [
            fl.Rule(action="freeze", select="**"),
            fl.Rule(action="train", select=globs(train)),
        ]
        fl.freeze(self.model, fl.Plan(rules=rules), gradients="drop")

    def step(self) -> None:
        self.optimizer.zero_grad()
        for rank in self.shares:
            (loss_of(self.model, self.step_number, rank) / len(self.shares)).backward()
        self.optimizer.step()
        self.step_number += 1
        if self.recipe == "freezer":
            self.freezer.step()

    def state(self) -> dict[str, Any]:
        trains = [name for name, p in self.net.named_parameters() if p.requires_grad]
        how = self.freezer if self.recipe == "freezer" else self.optimizer
        found = {"net": self.net.state_dict(), "how": how.state_dict(), "trains": trains}
        return {**copy.deepcopy(found), "step": self.step_number}

    def load(self, saved: dict[str, Any]) -> None:
        self.optimizer.zero_grad()
        self.net.load_state_dict(saved["net"])
        self.step_number = saved["step"]
        if self.recipe == "freezer":
            self.freezer.load_state_dict(saved["how"])
        else:
            self.move(sorted({name.split(".")[0] for name in saved["trains"]}))
            self.optimizer.load_state_dict(saved["how"])


@dataclass(frozen=True, kw_only=True)
class Script:
    """A schedule that trains what the script says at the moment."""

    name: ClassVar[str] = "script"
    traits: ClassVar[Traits] = Traits()
    train: ClassVar[list[str]] = []

    def start(self, progress: Progress) -> State:
        return {}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        return frozenset()

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        wanted = tuple(f"{name}." for name in Script.train)
        units = [u.name for u in progress.layout.units if u.parameters[0].startswith(wanted)]
        return Decision(state=state, train=frozenset(units), why="the script says so")


def globs(units: list[str]) -> list[Any]:
    return [fl.glob(f"{unit}.**") for unit in units]


def as_rank(rank: int, script: list[Any], recipe: Recipe) -> dict[str, str]:
    run = Run([rank], wrapped=True, recipe=recipe)
    run.follow(script)
    return bits(run.net)


def check(pair: Party, script: list[Any], recipe: Recipe) -> None:
    one, other = pair.values(as_rank, script, recipe)
    assert one == other
    reference = Run([0, 1], wrapped=False, recipe=recipe)
    reference.follow(script)
    assert one == bits(reference.net)


@settings(max_examples=6)
@given(script=scripts, recipe=st.sampled_from(["freezer", "wrap all"]))
def test_ranks_are_equal_to_each_other_and_to_one_process(
    pair: Party, script: list[Any], recipe: Recipe
) -> None:
    check(pair, script, recipe)


@pytest.mark.slow
@settings(max_examples=60)
@given(script=scripts, recipe=st.sampled_from(["freezer", "wrap all"]))
def test_many_sequences(pair: Party, script: list[Any], recipe: Recipe) -> None:
    check(pair, script, recipe)
