"""Adaptive parameter freezing: rest what only jitters, and look again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.checks import has_blocks, number, whole
from frostline.units import format_number_of

_CHANGE = "weight_change"


@dataclass(frozen=True, kw_only=True)
class APF:
    """Freeze each tensor whose updates cancel out, for longer each time that they still do.

    Chen et al., "Communication-Efficient Federated Learning with Adaptive Parameter Freezing"
    (ICDCS 2021), by tensor where the paper goes by scalar. At every look, with the change D of a
    tensor since the last one, ``m = βm + (1-β)D`` and ``a = βa + (1-β)|D|``. The effective
    perturbation ``P = Σ|m| / Σa`` is near 1 for what travels and near 0 for what jitters. Below
    the threshold the tensor rests for one look more than the last time; above it the rest halves.
    The head never rests.

    Attributes:
        period: steps from one look to the next.
        decay: ``β``.
        threshold: the perturbation below which a tensor rests.
        crowded: share of the scalars that may rest before the threshold is halved.

    >>> APF(decay=1.0)
    Traceback (most recent call last):
    frostline.errors.ScheduleError: apf: decay must be a number at least 0, at most 0.9999, got 1.0
    """

    period: int = 10
    decay: float = 0.9
    threshold: float = 0.05
    crowded: float = 0.8

    name: ClassVar[str] = "apf"
    traits: ClassVar[Traits] = Traits(grain="tensor", moments="keep")

    def __post_init__(self) -> None:
        whole(self.name, "period", self.period)
        number(self.name, "decay", self.decay, least=0, most=0.9999)
        number(self.name, "threshold", self.threshold, above=0, most=1)
        number(self.name, "crowded", self.crowded, above=0, most=1)

    def start(self, progress: Progress) -> State:
        """No change seen yet. Raises ScheduleError for a model that is all head."""
        has_blocks(self.name, progress)
        return {"look": 0, "threshold": self.threshold, "rests": {}, "until": {}, "averages": {}}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """How far the tensors moved since the last look."""
        return frozenset({_CHANGE})

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """Look at every ``period``-th step; else leave all as it is."""
        layout = progress.layout
        if progress.at == "start":
            return Decision(state=state, train=layout.names, why="all tensors train at first")
        if progress.at != "step" or progress.step % self.period:
            return Decision(state=state)
        look = int(state["look"]) + 1
        averages, rests, until = dict(state["averages"]), dict(state["rests"]), dict(state["until"])
        threshold = float(state["threshold"])
        changes = signals[_CHANGE]
        judged: dict[str, float] = {}
        for name in layout.body:
            if name not in progress.trains or name not in changes:
                continue
            averages[name] = self._averaged(averages.get(name), changes[name])
            judged[name] = perturbation(averages[name])
            rest = int(rests.get(name, 0))
            rests[name] = rest + 1 if judged[name] < threshold else rest // 2
            if judged[name] < threshold:
                until[name] = look + rests[name]
        resting = {name for name, end in until.items() if end > look}
        numel = {unit.name: unit.numel for unit in layout.units}
        share = sum(numel[name] for name in resting) / max(1, sum(numel.values()))
        if share > self.crowded:
            threshold /= 2
        return Decision(
            state={
                "look": look,
                "threshold": threshold,
                "rests": rests,
                "until": {name: end for name, end in until.items() if end > look},
                "averages": averages,
            },
            train=layout.names - resting,
            why=f"look {look}: {format_number_of(len(resting), 'tensor')} of"
            f" {len(layout.units)} rest",
            numbers={
                "threshold": threshold,
                "share at rest": share,
                "least perturbation": min(judged.values(), default=1.0),
            },
            restart=frozenset({_CHANGE}),
        )

    def _averaged(self, before: Mapping[str, Any] | None, change: Tensor) -> dict[str, Tensor]:
        """New tensors: those in the state that was given stay what they are."""
        fresh = (1 - self.decay) * change
        if before is None:
            return {"m": fresh, "a": fresh.abs()}
        return {"m": self.decay * before["m"] + fresh, "a": self.decay * before["a"] + fresh.abs()}


def perturbation(averages: Mapping[str, Tensor]) -> float:
    """How much of the movement was in one direction, from 0 to 1; 1 for what never moved.

    >>> import torch
    >>> perturbation({"m": torch.tensor([1.0, -1.0]), "a": torch.tensor([2.0, 2.0])})
    0.5
    """
    travelled = float(averages["a"].sum())
    return float(averages["m"].abs().sum()) / travelled if travelled > 0 else 1.0
