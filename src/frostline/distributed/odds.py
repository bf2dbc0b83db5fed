"""How ranks differ, in words that are the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from frostline.units import format_names


class Word(TypedDict):
    """What one rank says before it goes on.

    Attributes:
        moment: what it is about to do.
        facts: what has to be the same on all ranks, by name; plain JSON values.
        refusal: why it can't go on, or None.
    """

    moment: str
    facts: dict[str, object]
    refusal: str | None


def say_odds(words: Mapping[int, Word]) -> str:
    """The message for ranks that are at odds: who refuses, or the first thing that differs.

    Args:
        words: rank → what it said.

    >>> zero = Word(moment="step 3", facts={"the seed": 0}, refusal=None)
    >>> print(say_odds({0: zero, 1: {**zero, "facts": {"the seed": 1}}}).partition(".")[0])
    step 3: the ranks are at odds over the seed: 0 on rank 0, 1 on rank 1
    """
    base, first = next(iter(words.items()))
    for rank, word in words.items():
        if word["refusal"] is not None:
            return f"{word['moment']}: no rank goes on, since rank {rank} can't: {word['refusal']}"
    told = {rank: {"what to do": word["moment"], **word["facts"]} for rank, word in words.items()}
    for name in told[base]:
        differing = [rank for rank in told if told[rank].get(name) != told[base][name]]
        if differing:
            how = _compare(base, told[base][name], differing[0], told[differing[0]].get(name))
            more = f" ({len(differing)} ranks differ from it)" if len(differing) > 1 else ""
            return (
                f"{first['moment']}: the ranks are at odds over {name}: {how}{more}. Nothing was"
                " changed: give all ranks the same model, schedule, seed and lengths, and make"
                " each call on all of them"
            )
    return f"{first['moment']}: the ranks are at odds"


def _compare(one: int, here: object, other: int, there: object) -> str:
    if isinstance(here, list) and isinstance(there, list):
        sides = [
            f"only rank {rank} has {format_names(only)}"
            for rank, only in (
                (one, [item for item in here if item not in there]),
                (other, [item for item in there if item not in here]),
            )
            if only
        ]
        return "; ".join(sides) or "the order differs"
    if isinstance(here, dict) and isinstance(there, dict):
        keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
        here, there = ({key: side.get(key) for key in keys} for side in (here, there))
    return f"{_short(here)} on rank {one}, {_short(there)} on rank {other}"


def _short(fact: object) -> str:
    text = str(fact)
    return text if len(text) <= 120 else f"{text[:117]}..."
