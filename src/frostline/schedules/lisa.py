"""LISA: a few blocks drawn anew every few steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from frostline.errors import ScheduleError
from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.chance import drawing
from frostline.schedules.checks import has_blocks, whole


@dataclass(frozen=True, kw_only=True)
class LISA:
    """The stem and the head always train, and of the blocks a few, drawn every ``period`` steps.

    Pan et al., "LISA" (arXiv 2403.17919).

    Attributes:
        layers: blocks that train at a time; None: a quarter of them, 1 at least and 8 at most,
            which for 32 blocks is the authors' 8.
        period: steps until the next draw.
        seed: what the draws depend on, beside the step.

    >>> LISA().layers_of(32), LISA().layers_of(12), LISA(layers=2).layers_of(12)
    (8, 3, 2)
    """

    layers: int | None = None
    period: int = 5
    seed: int = 0

    name: ClassVar[str] = "lisa"
    traits: ClassVar[Traits] = Traits()

    def __post_init__(self) -> None:
        if self.layers is not None:
            whole(self.name, "layers", self.layers)
        whole(self.name, "period", self.period)
        whole(self.name, "seed", self.seed, least=0)

    def layers_of(self, blocks: int) -> int:
        """How many of so many blocks train at a time."""
        return self.layers if self.layers is not None else min(8, max(1, blocks // 4))

    def start(self, progress: Progress) -> State:
        """Nothing to remember. Raises ScheduleError for a model with fewer blocks than drawn."""
        has_blocks(self.name, progress)
        blocks = len(progress.layout.blocks)
        if self.layers_of(blocks) > blocks:
            raise ScheduleError(
                f"lisa: {self.layers} blocks are to train at a time, and the model has {blocks}:"
                " lower layers, or leave it out"
            )
        return {}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """Nothing but the time."""
        return frozenset()

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """A draw at every ``period``-th step."""
        turn, within = divmod(progress.step, self.period)
        if progress.at == "epoch" or within:
            return Decision(state=state)
        layout = progress.layout
        chosen = drawing(self.seed, turn).sample(layout.blocks, self.layers_of(len(layout.blocks)))
        always = {*layout.of_role("stem"), *layout.head}
        return Decision(
            state=state,
            train=frozenset(always.union(chosen)),
            why=f"draw {turn}: {', '.join(sorted(chosen, key=layout.blocks.index))}",
            numbers={"draw": turn},
        )
