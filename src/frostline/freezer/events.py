"""What a freezer did: an event for every transition, with the reason and its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from frostline.schedules import Decision, Layout, Progress
from frostline.units import format_names

Kind = Literal["start", "freeze", "thaw", "switch", "note"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """A transition, or a note about something that was assumed.

    Attributes:
        step: optimizer steps made before it.
        epoch: epochs finished before it.
        kind: ``start``: the first decision; ``freeze``; ``thaw``; ``switch``: both; ``note``.
        why: the schedule's reason.
        frozen: names of the units that it froze.
        thawed: names of the units that it thawed.
        frozen_blocks: blocks (or tensors in blocks) that are frozen from then on.
        numbers: the numbers that the reason rests on.

    >>> print(Event(step=40, epoch=1, kind="freeze", why="they rest", frozen=("layers.0",)))
    step 40, epoch 1: freeze layers.0: they rest
    """

    step: int
    epoch: int
    kind: Kind
    why: str
    frozen: tuple[str, ...] = ()
    thawed: tuple[str, ...] = ()
    frozen_blocks: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """The event as JSON holds it."""
        plain = asdict(self)
        return {**plain, "frozen": list(self.frozen), "thawed": list(self.thawed)}

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Event:
        """Read what :meth:`to_plain` gave."""
        tuples = {key: tuple(plain[key]) for key in ("frozen", "thawed")}
        return Event(**{**plain, **tuples})

    def __str__(self) -> str:
        parts = [
            f"{word} {format_names(names)}"
            for word, names in (("freeze", self.frozen), ("thaw", self.thawed))
            if names
        ]
        what = ", ".join(parts) or self.kind
        return f"step {self.step}, epoch {self.epoch}: {what}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stretch of a run in which the same units were frozen.

    Attributes:
        step: its first step.
        epoch: the epoch in which it begins.
        frozen: names of the units that are frozen in it, from the input up.
        blocks: how many of them are blocks (or tensors in blocks).
        why: the reason.
    """

    step: int
    epoch: int
    frozen: tuple[str, ...]
    blocks: int
    why: str


def event_of(
    decision: Decision,
    progress: Progress,
    *,
    before: frozenset[str],
    train: frozenset[str],
    kind: Kind | None = None,
) -> Event:
    """The event of a transition.

    Args:
        decision: the schedule's.
        progress: where the run stood.
        before: names of the units that trained before it.
        train: names of those that train from then on.
        kind: None: as the units that froze and thawed say.
    """
    units = [unit.name for unit in progress.layout.units]
    frozen = tuple(name for name in units if name in before - train)
    thawed = tuple(name for name in units if name in train - before)
    seen: Kind = "switch" if frozen and thawed else "freeze" if frozen else "thaw"
    return Event(
        step=progress.step,
        epoch=progress.epoch,
        kind=kind or seen,
        why=decision.why,
        frozen=frozen,
        thawed=thawed,
        frozen_blocks=len(set(progress.layout.blocks) - train),
        numbers={k: v for k, v in decision.numbers.items() if math.isfinite(v)},
    )


def timeline(events: Iterable[Event], layout: Layout) -> tuple[Row, ...]:
    """What was frozen from when on: a row for each event that is a transition."""
    frozen: set[str] = set()
    rows = []
    for event in events:
        if event.kind == "note":
            continue
        frozen = (frozen | set(event.frozen)) - set(event.thawed)
        rows.append(
            Row(
                step=event.step,
                epoch=event.epoch,
                frozen=tuple(unit.name for unit in layout.units if unit.name in frozen),
                blocks=event.frozen_blocks,
                why=event.why,
            )
        )
    return tuple(rows)
