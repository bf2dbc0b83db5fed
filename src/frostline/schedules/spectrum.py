"""Spectrum: train the matrices with the most signal, chosen once, before the first step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from frostline.errors import ScheduleError, SelectorError
from frostline.schedules.base import Decision, Progress, Signals, State, Traits
from frostline.schedules.checks import has_blocks, number
from frostline.schedules.snr import snr_scores_in
from frostline.selection.blocks import blocks_in

_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Train the share ``fraction`` of each type of layer that has the highest signal-to-noise.

    Hartford et al., "Spectrum: Targeted Training on Signal to Noise Ratio" (arXiv 2406.06623). The
    scores are computed once, from the weights alone (see :func:`snr_scores`). A matrix's bias goes
    with it; norms inside the blocks are frozen; the head always trains.

    Attributes:
        fraction: share of each layer type that trains, rounded down, but at least one.
        stem: train what lies before the blocks too, as the authors do with the embedding. False
            keeps the frost line free to rise.

    >>> Spectrum(fraction=0.25)
    Spectrum(fraction=0.25, stem=True)
    """

    fraction: float = 0.5
    stem: bool = True

    name: ClassVar[str] = "spectrum"
    traits: ClassVar[Traits] = Traits(grain="tensor")

    def __post_init__(self) -> None:
        number(self.name, "fraction", self.fraction, above=0, most=1)

    def start(self, progress: Progress) -> State:
        """The scores; raises ScheduleError where weights can't be read or nothing can be chosen."""
        has_blocks(self.name, progress)
        layout = progress.layout
        scores = snr_scores_in(layout.inventory, only=frozenset(layout.blocks))
        if not scores:
            raise ScheduleError(
                "spectrum chooses among matrices of floating-point numbers, and the model's blocks"
                " hold none"
            )
        return {"scores": scores, "chosen": False}

    def needs(self, progress: Progress, state: State) -> frozenset[str]:
        """No signal: the scores are made before training."""
        return frozenset()

    def decide(self, progress: Progress, signals: Signals, state: State) -> Decision:
        """The choice, the first time it is asked for; after that all stays as it is."""
        if state["chosen"]:
            return Decision(state=state)
        layout, scores = progress.layout, state["scores"]
        top = top_of_each_type(scores, _block_names(progress), self.fraction)
        modules = {_module(name) for name in top}
        with_them = {
            name for name in layout.blocks if name not in scores and _module(name) in modules
        }
        always = {*layout.head, *(layout.of_role("stem") if self.stem else ())}
        return Decision(
            state={**state, "chosen": True},
            train=frozenset(top | with_them | always),
            why=f"{len(top)} of {len(scores)} matrices have the most signal of their type",
            numbers={"matrices": len(top)},
        )


def top_of_each_type(
    scores: Mapping[str, float], blocks: Sequence[str], fraction: float
) -> frozenset[str]:
    """The matrices with the highest scores, of each layer type so many; of equals the first.

    >>> scores = {"h.0.fc.weight": 0.1, "h.1.fc.weight": 0.3, "h.2.fc.weight": 0.2}
    >>> sorted(top_of_each_type(scores, ["h.0", "h.1", "h.2"], 0.7))
    ['h.1.fc.weight', 'h.2.fc.weight']
    """
    types: dict[str, list[str]] = {}
    for name in scores:
        types.setdefault(layer_type(name, blocks), []).append(name)
    top: set[str] = set()
    for names in types.values():
        # Half of 6 is 3 and never 2, whatever 0.5 x 6 is in binary.
        count = max(1, int(round(len(names) * fraction, 9)))
        top.update(sorted(names, key=lambda name: -scores[name])[:count])
    return frozenset(top)


def layer_type(name: str, blocks: Sequence[str]) -> str:
    """A tensor's name without the number of its block, and of what repeats inside the block.

    >>> layer_type("model.layers.3.mlp.experts.5.up.weight", ["model.layers.3"])
    'model.layers.#.mlp.experts.#.up.weight'
    >>> layer_type("block1.0.weight", ["block1"])
    'block#.0.weight'
    """
    block = next((b for b in blocks if name.startswith(f"{b}.")), "")
    above, inner = _DIGITS.sub("#", block), name[len(block) :].lstrip(".").split(".")
    # The module's own number stays: the first and the second layer of a block are two types.
    repeated = [_DIGITS.sub("#", part) for part in inner[:-2]]
    return ".".join([*([above] if above else []), *repeated, *inner[-2:]])


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _block_names(progress: Progress) -> Sequence[str]:
    try:
        return blocks_in(progress.layout.inventory).names
    except SelectorError:  # the user named the blocks, since they can't be found
        return ()
