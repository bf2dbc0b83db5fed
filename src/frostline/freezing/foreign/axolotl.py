r"""Axolotl's ``unfrozen_parameters``, which Spectrum writes too.

A list of patterns: what one of them matches, from the start of the name on, trains; all else is
frozen. A dot is a dot, except in ``.+``; ``\.`` is one as well.
"""

from __future__ import annotations

import re

from frostline.errors import PlanError
from frostline.freezing.foreign.fields import Fields, Rules
from frostline.selection import Selector, as_selector, glob, regex

KEYS = frozenset({"unfrozen_parameters"})

_ROWS = re.compile(r"(?P<pattern>.+)\[(?P<start>\d*)(?P<colon>:)?(?P<stop>\d*)\]")
_BARE_DOT = re.compile(r"(?<!\\)\.(?!\+)")


def rules(fields: Fields) -> Rules:
    """Freeze everything, then train what a pattern matches; raises PlanError for row ranges."""
    patterns = fields.strings("unfrozen_parameters")
    if not patterns:
        raise fields.error("unfrozen_parameters", "the list is empty, so all would be frozen")
    fields.refuse("adapter", "", "an adapter is new weights, not a choice among the model's own")
    fields.refuse("freeze_mm_modules", False, "name the vision modules in a plan of your own")
    fields.refuse("lisa_n_layers", 0, "layers that change while training are a schedule: 'lisa'")
    selectors = [
        _selector(pattern, f"{fields.place}: unfrozen_parameters, entry {number}")
        for number, pattern in enumerate(patterns, 1)
    ]
    return [("freeze", glob("**")), ("train", as_selector(selectors))]


def _selector(pattern: str, place: str) -> Selector:
    rows = _ROWS.fullmatch(pattern)
    if rows is not None and (rows["start"] or rows["colon"]):
        raise PlanError(f"{place}: {pattern!r} {_how_to_hold_rows(rows)}")
    return regex(_anchored(pattern))


def _anchored(pattern: str) -> str:
    """The pattern as Axolotl compiles it, matched from the start as ``re.match`` does."""
    literal = _BARE_DOT.sub(r"\\.", pattern)
    if "|" in literal:
        return f"^(?:{literal})"
    return literal if literal.startswith("^") else f"^{literal}"


def _how_to_hold_rows(rows: re.Match[str]) -> str:
    start = int(rows["start"] or 0)
    stop = int(rows["stop"]) if rows["stop"] else None
    if not rows["colon"]:
        stop = start + 1
    if stop is not None and stop <= start:
        return f"trains no row: {start} to {stop} is empty"
    held = [f"slice(0, {start})"] if start else []
    held += [f"slice({stop}, None)"] if stop is not None else []
    target = f"re:{_anchored(rows['pattern'])}"
    if not held:
        return "trains all rows: write it without the range"
    calls = " and ".join(f"fl.freeze_rows(model, {target!r}, {rows_})" for rows_ in held)
    return (
        "trains some rows of a tensor, and a plan is about whole tensors: leave the range out of"
        f" the list, so that the tensor trains, and after fl.freeze(model, plan) call {calls}"
    )
