"""BAdam: block coordinate descent, one block at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from frostline.errors import ScheduleError
from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.chance import drawing
from frostline.schedules.checks import has_blocks, one_of, whole
from frostline.selection.suggest import nearest

Order = Literal["random", "ascending", "descending"]


@dataclass(frozen=True, kw_only=True)
class BAdam:
    """One block trains for so many steps, then the next, each with an optimizer state of its own.

    Luo et al., "BAdam" (arXiv 2404.02827). A cycle visits every block once. The stem is a block
    too. The state of a block is dropped when its turn ends.

    Attributes:
        steps_per_block: steps of a turn; None: an epoch's steps shared among the blocks, 50 at
            least and 100 at most.
        order: ``random``: each cycle in a new order; ``ascending`` from the input up;
            ``descending``.
        always: names of units that train in every turn; ``head`` and ``stem`` are such names.
        seed: what the random order depends on, beside the cycle.

    >>> BAdam().turn_length(1600, blocks=20), BAdam().turn_length(100, blocks=4)
    (80, 50)
    """

    steps_per_block: int | None = None
    order: Order = "random"
    always: tuple[str, ...] = ("head",)
    seed: int = 0

    name: ClassVar[str] = "badam"
    traits: ClassVar[Traits] = Traits(paced=True)

    def __post_init__(self) -> None:
        if self.steps_per_block is not None:
            whole(self.name, "steps_per_block", self.steps_per_block)
        one_of(self.name, "order", self.order, get_args(Order))
        whole(self.name, "seed", self.seed, least=0)
        object.__setattr__(self, "always", tuple(self.always))

    def turn_length(self, steps_per_epoch: int, *, blocks: int) -> int:
        """Steps of one turn."""
        if self.steps_per_block is not None:
            return self.steps_per_block
        return min(max(steps_per_epoch // blocks, 50), 100)

    def block_in_turn(self, turn: int, blocks: tuple[str, ...]) -> str:
        """Which block trains in a turn (from 0)."""
        cycle, place = divmod(turn, len(blocks))
        order = list(blocks)
        if self.order == "descending":
            order.reverse()
        elif self.order == "random":
            drawing(self.seed, cycle).shuffle(order)
        return order[place]

    def start(self, progress: Progress) -> State:
        """The first turn. Raises ScheduleError if ``always`` names no unit of the model."""
        has_blocks(self.name, progress)
        known = {*progress.layout.names, "head", "stem"}
        for name in self.always:
            if name not in known:
                raise ScheduleError(
                    f"badam: always names {name!r}, which is no unit of the model."
                    f"{nearest(name, sorted(known))}"
                )
        return {"turn": 0, "until": None}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """Nothing but the time."""
        return frozenset()

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """The next block, when the turn has ended."""
        blocks = self._in_turn(progress)
        turn, until = int(state["turn"]), state["until"]
        if until is not None and (progress.at == "epoch" or progress.step < until):
            return Decision(state=state)
        turn += until is not None
        block = self.block_in_turn(turn, blocks)
        length = self.turn_length(progress.steps_per_epoch, blocks=len(blocks))
        present = frozenset(self.always) & progress.layout.names
        return Decision(
            state={"turn": turn, "until": progress.step + length},
            train=present | {block},
            why=f"turn {turn}: {block} for {length} steps",
            numbers={"turn": turn},
        )

    def _in_turn(self, progress: Progress) -> tuple[str, ...]:
        units = [unit.name for unit in progress.layout.units if unit.name not in self.always]
        return tuple(units) or progress.layout.blocks
