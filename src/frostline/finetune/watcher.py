"""Who is told how a job goes; the job itself prints nothing."""

from __future__ import annotations

from typing import Protocol

from frostline.finetune.metrics import EpochMetrics


class Watcher(Protocol):
    """Told what happens, as it happens."""

    def note(self, text: str) -> None:
        """Something takes long, or went wrong without harm; one line."""

    def begin(self, *, epochs: int, done: int, steps: int) -> None:
        """Training begins after ``done`` of ``epochs`` epochs, of ``steps`` steps each."""

    def step(self, loss: float) -> None:
        """One step was made, with this loss in nats."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch was finished and is on disk."""

    def measuring(self) -> None:
        """Training is over; what it saved is being measured."""


class Silent:
    """A :class:`Watcher` that drops all it is told."""

    def note(self, text: str) -> None:
        """Drop it."""

    def begin(self, *, epochs: int, done: int, steps: int) -> None:
        """Drop it."""

    def step(self, loss: float) -> None:
        """Drop it."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """Drop it."""

    def measuring(self) -> None:
        """Drop it."""
