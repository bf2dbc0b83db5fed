"""The contract of a schedule: what it is told, what it may ask for, what it says.

A schedule is a value. It holds no model and no optimizer; it is asked what should train now and
answers from what it is told, so the same questions get the same answers in every process. What it
has to remember it hands back as ``state``; the freezer keeps that and saves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from frostline.schedules.layout import Grain, Layout

State = Mapping[str, Any]
"""What a schedule remembers: numbers, strings, lists and mappings, and tensors where it must."""

Signals = Mapping[str, Mapping[str, Any]]
"""Name of a signal → name of a unit → value; computed when it is looked up."""

Moment = Literal["start", "step", "epoch"]
"""When a decision is asked for: before the first step, after a step, at an epoch's end."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands when a decision is asked for.

    Attributes:
        at: what has just happened.
        layout: the model's parts, which decisions are about.
        trains: names of the units that train now.
        step: optimizer steps that were made; also the number, from 0, of the step that comes.
        epoch: epochs that were finished; also the number, from 0, of the one that comes or runs.
        total_steps: steps of the whole run.
        steps_per_epoch: steps of one epoch.
        metric: the validation metric, if one has just come.
        rate: the learning rate as the scheduler has it now, relative to the run's first.
    """

    at: Moment
    layout: Layout
    trains: frozenset[str]
    step: int = 0
    epoch: int = 0
    total_steps: int = 1000
    steps_per_epoch: int = 100
    metric: float | None = None
    rate: float = 1.0

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole run, a begun one counted."""
        return max(1, -(-self.total_steps // self.steps_per_epoch))


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a schedule says.

    Attributes:
        state: what it wants to be given next time.
        train: names of the units that are to train, all others frozen; None: as it is.
        rates: unit → factor on the learning rate that the scheduler gives; units that are not in
            it have 1. None: as it is.
        why: the reason, in words; needed where ``train`` is given.
        numbers: the numbers that the reason rests on.
        restart: signals that start anew: sums from zero, references from the present.
    """

    state: State
    train: frozenset[str] | None = None
    rates: Mapping[str, float] | None = None
    why: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    restart: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a method is like, whatever its options.

    Attributes:
        grain: whether it decides about ``block``s (with stem and head) or about single ``tensor``s.
        moments: what a thawed parameter starts from: ``fresh``, without momentum and the like, or
            ``keep``: frozen parameters keep their optimizer state, and its memory.
        scales_rates: whether it sets factors on the learning rates.
        paced: whether it goes by the length of the run or of an epoch.
    """

    grain: Grain = "block"
    moments: Literal["fresh", "keep"] = "fresh"
    scales_rates: bool = False
    paced: bool = False


@runtime_checkable
class Schedule(Protocol):
    """A method of freezing: a frozen keyword-only dataclass with these three functions.

    Every function is pure: no clock, no global random state, no model, nothing changed in place.
    What is drawn at random comes from the schedule's seed and the progress (see
    :func:`frostline.schedules.chance.drawing`).

    >>> from frostline.schedules import registry
    >>> isinstance(registry["alpha"](), Schedule)
    True
    """

    name: ClassVar[str]
    traits: ClassVar[Traits]

    def start(self, progress: Progress) -> State:
        """The state before the first decision.

        Raises:
            ScheduleError: (a ValueError) the model or the run does not suit the schedule.
        """
        ...

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """Signals to take in the step that comes (``frostline.freezer.signals.SIGNALS``)."""
        ...

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """What is to train from here on."""
        ...
