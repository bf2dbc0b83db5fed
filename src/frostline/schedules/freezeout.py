"""FreezeOut: every layer has its own cosine, and freezes where it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.checks import has_blocks, number, one_of
from frostline.units import format_number_of

Curve = Literal["linear", "squared", "cubic"]

_POWERS = {"linear": 1, "squared": 2, "cubic": 3}


@dataclass(frozen=True, kw_only=True)
class FreezeOut:
    """Anneal each layer to zero, the lowest first, and freeze it then.

    Brock et al., "FreezeOut" (arXiv 1706.04983). Layer ``l`` of ``L`` ends at the share
    ``t_l = s(t0 + (1 - t0) l / L)`` of the steps; until then its rate is a half cosine. The cosine
    is the schedule: let your own scheduler stay constant.

    Attributes:
        first: ``t0``, before ``curve`` bends it: when the lowest layer ends, as a share of the run.
        curve: ``s``: how the ends are spread; ``cubic`` freezes early.
        scaled: whether a layer that ends early gets a higher rate, so that all travel alike.

    >>> [round(share, 3) for share in FreezeOut().ends(5)]
    [0.512, 0.614, 0.729, 0.857, 1.0]
    """

    first: float = 0.8
    curve: Curve = "cubic"
    scaled: bool = True

    name: ClassVar[str] = "freezeout"
    traits: ClassVar[Traits] = Traits(scales_rates=True, paced=True)

    def __post_init__(self) -> None:
        number(self.name, "first", self.first, above=0, most=1)
        one_of(self.name, "curve", self.curve, get_args(Curve))

    def ends(self, layers: int) -> list[float]:
        """The share of the steps at which each layer, from the input up, ends; the last at 1."""
        power = _POWERS[self.curve]
        top = max(1, layers - 1)
        shares = (self.first + (1 - self.first) * layer / top for layer in range(layers))
        # 0.8 cubed is 0.512: an error in the last digit would cost the layer a step.
        return [round(share**power, 12) for share in shares]

    def factor(self, share: float, end: float) -> float:
        """What a layer that ends at ``end`` multiplies the rate by, at ``share`` of the steps."""
        height = 0.5 * (1 + math.cos(math.pi * min(share / end, 1.0)))
        return height / end if self.scaled else height

    def start(self, progress: Progress) -> State:
        """Nothing to remember. Raises ScheduleError for a model without a body below the head."""
        has_blocks(self.name, progress)
        return {}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """Nothing but the time."""
        return frozenset()

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """The layers whose cosine has not ended train."""
        layers = [unit.name for unit in progress.layout.units]
        # The run may go on past its planned end: what is left then trains at the last rate.
        step = min(progress.step, progress.total_steps - 1)
        share = step / progress.total_steps
        ends = dict(zip(layers, self.ends(len(layers)), strict=True))
        rates = {name: self.factor(share, end) for name, end in ends.items() if share < end}
        ended = len(layers) - len(rates)
        return Decision(
            state=state,
            train=frozenset(rates),
            rates=rates,
            why=f"{share:.0%} of the steps: {format_number_of(ended, 'layer')} of {len(layers)}"
            " came to their ends",
            numbers={"share": share},
        )
