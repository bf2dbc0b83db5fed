"""What a schedule froze when, over a whole run: for ``timeline.json``, a chart and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from frostline.freezer import Event, Freezer
from frostline.schedules import Blocks, Unit, blocks, to_plain


@dataclass(frozen=True, kw_only=True)
class TimedUnit:
    """What was frozen or trained as one.

    Attributes:
        name: a block, ``stem``, ``head``, or a tensor.
        place: the block that it is or lies in, ``stem`` or ``head``.
        numel: number of scalars.
    """

    name: str
    place: str
    numel: int


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Steps in a row with the same units frozen.

    Attributes:
        step: steps made before it.
        epoch: epochs finished before it.
        steps: how many it is; 0 for a decision that came with the last step.
        frozen: names of the units that were frozen, from the input up.
        why: the schedule's reason.
    """

    step: int
    epoch: int
    steps: int
    frozen: tuple[str, ...]
    why: str


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What a schedule froze when.

    Attributes:
        schedule: its name and options, as YAML holds them.
        epochs: epochs of the run.
        steps_per_epoch: steps of each.
        units: all that the schedule decides about, from the input up.
        stretches: the run, cut where something froze or thawed.
        events: what the freezer has logged, with reasons and numbers.
    """

    schedule: Mapping[str, Any]
    epochs: int
    steps_per_epoch: int
    units: tuple[TimedUnit, ...]
    stretches: tuple[Stretch, ...]
    events: tuple[Event, ...]

    @property
    def places(self) -> tuple[str, ...]:
        """The blocks, with ``stem`` and ``head``, that have units; from the input up."""
        return tuple(dict.fromkeys(unit.place for unit in self.units))

    @property
    def by_epoch(self) -> tuple[tuple[float, ...], ...]:
        """For each place, how much of it was frozen in each epoch: 0 to 1, by scalars and steps."""
        size = self.steps_per_epoch
        rows = {place: [0.0] * self.epochs for place in self.places}
        for stretch in self.stretches:
            shares = self.shares(stretch)
            for epoch, steps in _cut(stretch, size, self.epochs):
                for place, share in shares.items():
                    rows[place][epoch] += share * steps
        return tuple(tuple(share / size for share in row) for row in rows.values())

    @property
    def trained(self) -> frozenset[str]:
        """Names of the units that trained for a step or more."""
        every = {unit.name for unit in self.units}
        return frozenset(
            name for s in self.stretches if s.steps for name in every.difference(s.frozen)
        )

    def shares(self, stretch: Stretch) -> dict[str, float]:
        """Place → share of its scalars that is frozen in the stretch."""
        frozen = set(stretch.frozen)
        numels = dict.fromkeys(self.places, 0)
        held = dict.fromkeys(self.places, 0)
        for unit in self.units:
            numels[unit.place] += unit.numel
            held[unit.place] += unit.numel if unit.name in frozen else 0
        return {place: held[place] / max(numels[place], 1) for place in numels}

    def to_json(self) -> dict[str, object]:
        """Plain values, as ``timeline.json`` holds them."""
        return {
            **asdict(self),
            "events": [event.to_plain() for event in self.events],
            "frozen_by_epoch": dict(zip(self.places, self.by_epoch, strict=True)),
        }


def timeline_of(freezer: Freezer, model: nn.Module, *, epochs: int) -> Timeline:
    """The timeline of a run that has ended.

    Args:
        freezer: what carried the schedule out.
        model: the model, unwrapped.
        epochs: epochs of the run.

    >>> import frostline as fl, torch
    >>> model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(2)), nn.Linear(4, 2))
    >>> optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    >>> phases = {"schedule": "explicit", "phases": [{"epoch": 0, "train": ["2"]}]}
    >>> freezer = Freezer(model, optimizer, schedule=phases, steps_per_epoch=1, total_steps=1)
    >>> timeline = timeline_of(freezer, model, epochs=1)
    >>> timeline.places
    ('0', '1', 'head')
    """
    rows = freezer.timeline()
    ends = [*(row.step for row in rows), freezer.position.step]
    return Timeline(
        schedule=to_plain(freezer.schedule),
        epochs=epochs,
        steps_per_epoch=freezer.position.steps_per_epoch,
        units=_timed(freezer.layout.units, model),
        stretches=tuple(
            Stretch(
                step=row.step, epoch=row.epoch, steps=end - row.step, frozen=row.frozen, why=row.why
            )
            for row, (_, end) in zip(rows, pairwise(ends), strict=True)
        ),
        events=freezer.events,
    )


def _timed(units: tuple[Unit, ...], model: nn.Module) -> tuple[TimedUnit, ...]:
    found = blocks(model)
    return tuple(
        TimedUnit(name=unit.name, place=_place(unit, found), numel=unit.numel) for unit in units
    )


def _place(unit: Unit, found: Blocks) -> str:
    if unit.role != "block":
        return unit.role
    if unit.name in found.names:
        return unit.name
    return found.names[max(found.layer_of(name) for name in unit.parameters) - 1]


def _cut(stretch: Stretch, size: int, epochs: int) -> Iterator[tuple[int, int]]:
    """The epochs that a stretch touches, from 0, and how many of its steps lie in each."""
    end = stretch.step + stretch.steps
    for epoch in range(stretch.step // size, min(epochs, -(-end // size))):
        yield epoch, min(end, (epoch + 1) * size) - max(stretch.step, epoch * size)
