"""A list of phases that people write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from frostline.errors import ScheduleError
from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.checks import number, one_of, whole
from frostline.schedules.stall import Better, Waiting, wait
from frostline.selection.suggest import nearest

Condition = Literal["epoch", "step", "stall"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What trains from one moment on; all else is frozen. Exactly one moment is given.

    Attributes:
        train: selectors of what trains; ``**`` is everything.
        epoch: it begins with this epoch, from 0.
        step: it begins with this step, from 0.
        stall: it begins when the metric has not got better for so many epochs of the phase
            before.
        rates: selector → factor on the learning rate; what no selector matches has 1.

    >>> Phase(train=("head",), epoch=0).starts
    ('epoch', 0)
    """

    train: str | Sequence[str]
    epoch: int | None = None
    step: int | None = None
    stall: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        train = (self.train,) if isinstance(self.train, str) else tuple(self.train)
        object.__setattr__(self, "train", train)
        if not train:
            raise ScheduleError(
                "explicit: a phase trains nothing: name a part, such as train: [head]"
            )
        given = [c for c in ("epoch", "step", "stall") if getattr(self, c) is not None]
        if len(given) != 1:
            raise ScheduleError(
                "explicit: a phase begins at an 'epoch', at a 'step' or after a 'stall', exactly"
                f" one of them; got {given or 'none'} for train: {list(train)}"
            )
        whole("explicit", given[0], getattr(self, given[0]), least=1 if given[0] == "stall" else 0)
        for selector, factor in self.rates.items():
            number("explicit", f"the rate of '{selector}'", factor, above=0)

    @property
    def starts(self) -> tuple[Condition, int]:
        """What the phase waits for, and for how much of it."""
        if self.epoch is not None:
            return "epoch", self.epoch
        if self.step is not None:
            return "step", self.step
        assert self.stall is not None
        return "stall", self.stall


@dataclass(frozen=True, kw_only=True)
class Explicit:
    """Phases in order, each with what trains in it; before the first, all stays as it is.

    Attributes:
        phases: the phases; mappings with the fields of :class:`Phase` are read as such.
        better: whether a higher (``max``) or a lower (``min``) metric is better.

    >>> schedule = Explicit([{"epoch": 0, "train": ["head"]}, {"epoch": 2, "train": ["**"]}])
    >>> [phase.starts for phase in schedule.phases]
    [('epoch', 0), ('epoch', 2)]
    """

    phases: tuple[Phase, ...]
    better: Better = "max"

    name: ClassVar[str] = "explicit"
    traits: ClassVar[Traits] = Traits(grain="tensor", scales_rates=True)

    def __init__(
        self,
        phases: Iterable[Phase | Mapping[str, Any]] = (Phase(train=("**",), epoch=0),),
        *,
        better: Better = "max",
    ) -> None:
        if isinstance(phases, str | Mapping) or not isinstance(phases, Iterable):
            raise ScheduleError(f"explicit: phases are a list, got {phases!r:.60}")
        read = tuple(_read(phase, place) for place, phase in enumerate(phases, 1))
        if not read:
            raise ScheduleError("explicit: at least one phase is needed")
        one_of(self.name, "better", better, ("max", "min"))
        _refuse_overlap(read)
        object.__setattr__(self, "phases", read)
        object.__setattr__(self, "better", better)

    def start(self, progress: Progress) -> State:
        """No phase has begun. Raises SelectorError if one of them names what is not there."""
        for phase in self.phases:
            progress.layout.find(phase.train)
            for selector in phase.rates:
                progress.layout.find(selector)
        return {"phase": -1, "best": None, "waited": 0}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """The metric, where the next phase waits for it to stall."""
        following = self._following(int(state["phase"]))
        waits = following is not None and following.starts[0] == "stall"
        return frozenset({"metric"} if waits else ())

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """The phases whose moment has come, one after another."""
        index, waiting = int(state["phase"]), Waiting(state["best"], state["waited"])
        if progress.at == "epoch" and self.needs(progress, state):
            if progress.metric is None:
                raise ScheduleError(
                    f"explicit: phase {index + 2} begins when the metric stalls, and none came:"
                    " call freezer.epoch(metric=…)"
                )
            waiting = wait(waiting, progress.metric, self.better)
        begun = index
        while (phase := self._following(begun)) is not None and _has_come(phase, progress, waiting):
            begun, waiting = begun + 1, Waiting()
        state = {"phase": begun, "best": waiting.best, "waited": waiting.epochs}
        if begun == index:
            return Decision(state=state)
        phase = self.phases[begun]
        rates = {
            unit: factor
            for selector, factor in phase.rates.items()
            for unit in progress.layout.find(selector)
        }
        condition, moment = phase.starts
        return Decision(
            state=state,
            train=progress.layout.find(phase.train),
            rates=rates,
            why=f"phase {begun + 1} of {len(self.phases)}: {condition} {moment}",
            numbers={"phase": begun + 1},
        )

    def _following(self, index: int) -> Phase | None:
        return self.phases[index + 1] if index + 1 < len(self.phases) else None


def _has_come(phase: Phase, progress: Progress, waiting: Waiting) -> bool:
    condition, moment = phase.starts
    if condition == "epoch":
        return progress.epoch >= moment
    if condition == "step":
        return progress.step >= moment
    return waiting.epochs >= moment


def _read(phase: object, place: int) -> Phase:
    if isinstance(phase, Phase):
        return phase
    known = [f.name for f in fields(Phase)]
    if not isinstance(phase, Mapping):
        raise ScheduleError(
            f"explicit: phase {place} must be a mapping with {', '.join(known)}, got {phase!r:.60}"
        )
    for key in phase:
        if key not in known:
            raise ScheduleError(
                f"explicit: phase {place} has an unknown key {key!r}.{nearest(str(key), known)}"
            )
    if "train" not in phase:
        raise ScheduleError(f"explicit: phase {place} does not say what to train")
    return Phase(**phase)


def _refuse_overlap(phases: tuple[Phase, ...]) -> None:
    """Phases of one kind must begin one after another; other kinds wait for each other."""
    latest: dict[str, tuple[int, int]] = {}
    for place, phase in enumerate(phases, 1):
        condition, moment = phase.starts
        if condition == "stall":
            if place == 1:
                raise ScheduleError(
                    "explicit: the first phase can't wait for a stall: begin with epoch: 0"
                )
            continue
        before = latest.get(condition)
        if before is not None and moment <= before[1]:
            raise ScheduleError(
                f"explicit: phases {before[0]} and {place} overlap: {condition} {moment} is not"
                f" after {condition} {before[1]}. Put them in order, or merge them"
            )
        latest[condition] = (place, moment)
