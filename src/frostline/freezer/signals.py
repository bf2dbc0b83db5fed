"""Signals by name: taken only in the steps for which a schedule asks, computed when read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, SupportsFloat

from torch.optim import Optimizer

from frostline.errors import ScheduleError
from frostline.freezer.meters import AccumulatedGradients, GradientNorms, Meter, WeightChange
from frostline.freezer.scene import Scene
from frostline.freezer.similarity import Similarity
from frostline.selection.suggest import nearest

SIGNALS: Mapping[str, Callable[[], Meter]] = MappingProxyType(
    {
        "gradient_norms": GradientNorms,
        "relative_gradients": partial(GradientNorms, relative=True),
        "accumulated_gradients": AccumulatedGradients,
        "weight_change": WeightChange,
        "similarity": Similarity,
    }
)
"""Name → what takes it. ``metric`` may be asked for too; ``freezer.epoch(metric=…)`` brings it."""

Reading = Mapping[str, Any]
"""Unit → value."""


class SignalBoard:
    """The meters that a schedule has asked for so far.

    Args:
        optimizer: before whose steps gradients are looked at.
        same: makes a reading about the units that are named the same in all processes.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        same: Callable[[Reading, Sequence[str]], Reading] = lambda reading, names: reading,
    ) -> None:
        self._same = same
        self._meters: dict[str, Meter] = {}
        self._armed: frozenset[str] = frozenset()
        self._silent: list[str] = []
        self._scene: Scene | None = None
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def arm(self, names: frozenset[str], scene: Scene) -> None:
        """Take these signals in the step that comes.

        Raises:
            ScheduleError: there is no such signal.
        """
        self._scene = scene
        self._armed = names - {"metric"}
        for name in self._armed:
            if name not in SIGNALS:
                raise ScheduleError(
                    f"a schedule asks for the signal {name!r}, which there is not."
                    f"{nearest(name, SIGNALS)} All signals: {', '.join(SIGNALS)}, metric"
                )
            self._meters.setdefault(name, SIGNALS[name]()).arm(scene)

    def readings(self, *, loss: SupportsFloat | None = None) -> Readings:
        """The signals that were armed, to be read; and ``loss``, a number, if there is one."""
        sources: dict[str, Callable[[], Reading]] = {
            name: partial(self._read, name) for name in self._armed
        }
        if loss is not None:
            sources["loss"] = lambda: self._same({"loss": float(loss)}, ("loss",))
        return Readings(sources)

    def restart(self, names: frozenset[str]) -> None:
        """Begin these anew."""
        for name in names & self._meters.keys():
            self._meters[name].restart()

    def state(self) -> dict[str, Any]:
        """What the meters have, by name."""
        return {name: meter.state() for name, meter in self._meters.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """The meters as they were."""
        self._meters = {name: SIGNALS[name]() for name in state}
        for name, meter in self._meters.items():
            meter.load(state[name])

    def remove(self) -> None:
        """Take the hooks away."""
        self._handle.remove()
        self.restart(frozenset(self._meters))

    def _read(self, name: str) -> Reading:
        assert self._scene is not None
        units = [unit.name for unit in self._scene.layout.units]
        reading = self._same(self._meters[name].read(self._scene), units)
        if not reading:
            self._silent.append(name)
        return reading

    def take_silent(self) -> list[str]:
        """Names of signals that were read and had nothing to say, since this was last asked."""
        silent, self._silent = self._silent, []
        return silent

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Look at the gradients; where a closure is still to compute them, after its first call."""
        closure = kwargs.get("closure") or next(filter(callable, args[1:]), None)
        if closure is None:
            self._look()
            return args, kwargs
        is_first = True

        def looking() -> Any:
            nonlocal is_first
            loss = closure()
            if is_first:
                self._look()
            is_first = False
            return loss

        return args[:1], {**kwargs, "closure": looking}

    def _look(self) -> None:
        if self._scene is not None:
            for name in self._armed:
                self._meters[name].look(self._scene)


class Readings(Mapping[str, Reading]):
    """Name of a signal → unit → value; each is computed when it is first looked up.

    >>> readings = Readings({"gradient_norms": lambda: {"head": 0.5}})
    >>> readings["gradient_norms"]["head"]
    0.5
    """

    def __init__(self, sources: Mapping[str, Callable[[], Reading]]) -> None:
        self._sources = sources
        self._read: dict[str, Reading] = {}

    def __getitem__(self, name: str) -> Reading:
        if name not in self._read:
            self._read[name] = self._sources[name]()
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)
