"""What tutorials say about the four ways, and we of replay, held against what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from frostline.compare.comparison import Comparison, Replayed, Way
from frostline.units import format_bytes, format_names, format_seconds

Verdict: TypeAlias = Literal["holds", "holds in part", "does not hold", "within noise"]

_MOSTLY_OVERHEAD_SECONDS = 1e-3
"""A step that is shorter than this is mostly Python and operator calls, whatever it computes."""

_TOO_SMALL = " A step this short is mostly overhead: judge speed on a larger network."


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of the tutorials, or of ours, and the evidence.

    Attributes:
        says: what is claimed.
        verdict: whether it holds here.
        measured: what was found, in words and numbers.
    """

    says: str
    verdict: Verdict
    measured: str


def weigh(found: Comparison) -> tuple[Claim, ...]:
    """Hold every claim against a comparison; each verdict follows from its numbers alone.

    >>> import torch
    >>> from torch import nn
    >>> from frostline.compare.ways import Experiment, compare_ways
    >>> claims = weigh(compare_ways(Experiment(
    ...     model=nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 10)),
    ...     batches=[torch.ones(3, 8)],
    ...     loss=lambda model, x: model(x).square().mean(),
    ...     freeze="0",
    ...     repeats=3,
    ... )))
    >>> claims[1].says, claims[1].verdict
    ('Way one, requires_grad=False: only the rest moves.', 'holds')
    """
    return (
        _all_move(found),
        _only_the_rest_moves(found, "grad", "Way one, requires_grad=False: only the rest moves."),
        _only_the_rest_moves(
            found, "optimizer", "Way two, kept out of the optimizer: only the rest moves."
        ),
        _gradients_pile_up(found),
        _only_the_rest_moves(found, "best", "Best, both of them: only the rest moves."),
        _less_than_nothing_frozen(found),
        _less_than_way_one(found),
        _faster(found),
        *(_replay(result.replayed, found) for result in found.ways if result.replayed is not None),
    )


def _all_move(found: Comparison) -> Claim:
    weights = (*found.frozen, *found.trained)
    still = [name for name in weights if found["none"].changed[name] == 0.0]
    return Claim(
        says="With nothing frozen, all weights move.",
        verdict="does not hold" if still else "holds",
        measured=(
            f"{format_names(still)} did not move."
            if still
            else f"All {len(weights)} tensors of weights moved."
        ),
    )


def _only_the_rest_moves(found: Comparison, way: Way, says: str) -> Claim:
    result = found[way]
    weights, buffers = result.moved(found.frozen), result.moved(found.frozen_buffers)
    still = [name for name in found.trained if result.changed[name] == 0.0]
    measured = (
        f"{format_names(weights)} moved although frozen"
        if weights
        else "The frozen weights moved by exactly 0"
    )
    if buffers:
        measured += (
            f", but {len(buffers)} buffers of the frozen layers moved, {buffers[0]} by"
            f" {result.changed[buffers[0]]:.2g}: running statistics follow the batches until the"
            " layer is in eval mode"
        )
    elif found.frozen_buffers:
        measured += f", and so did the {len(found.frozen_buffers)} buffers of the frozen layers"
    if still:
        measured += f"; {format_names(still)} should train and did not move"
    in_part: Verdict = "holds in part" if buffers else "holds"
    return Claim(
        says=says,
        verdict="does not hold" if weights or still else in_part,
        measured=f"{measured}.",
    )


def _gradients_pile_up(found: Comparison) -> Claim:
    none, two = found["none"].gradient_bytes, found["optimizer"].gradient_bytes
    left = found["optimizer"].leftover_gradient_bytes
    compared = "as" if two == none else format_bytes(none)
    outlives = (
        f"{format_bytes(left)} outlive optimizer.zero_grad(), and each backward adds to them"
        if left
        else "none outlive optimizer.zero_grad()"
    )
    return Claim(
        says="In way two, gradients are still computed for what is frozen, and pile up.",
        verdict="holds" if two == none and left else "does not hold",
        measured=f"{format_bytes(two)} of gradients, {compared} with nothing frozen; {outlives}.",
    )


def _less_than_nothing_frozen(found: Comparison) -> Claim:
    none, best = found["none"], found["best"]
    parts = {
        "gradients": (none.gradient_bytes, best.gradient_bytes),
        "optimizer state": (none.optimizer_state_bytes, best.optimizer_state_bytes),
        "activations": (none.activation_bytes, best.activation_bytes),
    }
    phrases = [
        f"{part} {format_bytes(before)} → {format_bytes(after)}"
        if before != after
        else f"{part} {format_bytes(after)} in both"
        for part, (before, after) in parts.items()
    ]
    smaller = sum(after < before for before, after in parts.values())
    in_part: Verdict = "holds in part" if smaller else "does not hold"
    return Claim(
        says="Best takes less memory than nothing frozen.",
        verdict="holds" if smaller == len(parts) else in_part,
        measured=f"{', '.join(phrases)}.".replace("gradients", "Gradients", 1),
    )


def _less_than_way_one(found: Comparison) -> Claim:
    one, best = found["grad"].optimizer_state_bytes, found["best"].optimizer_state_bytes
    late = found.late_state_bytes
    if best != one:
        reason = f"Optimizer state {format_bytes(one)} in way one, {format_bytes(best)} in best."
    elif not best:
        reason = "This optimizer keeps no state, so there is none to save."
    else:
        reason = (
            f"Optimizer state {format_bytes(best)} in both: none is made for a parameter that"
            " never has a gradient."
        )
    if late > best:
        reason += (
            f" If the freeze comes after the first step, way one still keeps {format_bytes(late)}."
        )
    return Claim(
        says="Best takes less memory than way one, as the optimizer holds nothing frozen.",
        verdict="holds" if best < one else "does not hold",
        measured=reason,
    )


def _faster(found: Comparison) -> Claim:
    none, one, best = (found[way].step_time for way in ("none", "grad", "best"))
    measured = (
        f"A step takes {format_seconds(none.median_seconds)} with nothing frozen,"
        f" {format_seconds(one.median_seconds)} in way one,"
        f" {format_seconds(best.median_seconds)} in best."
    )
    verdict: Verdict = "holds" if best.median_seconds < none.median_seconds else "does not hold"
    if best.overlaps(none):
        verdict = "within noise"
        measured += " Too close to tell: the middle halves of the times overlap."
    if best.median_seconds < _MOSTLY_OVERHEAD_SECONDS:
        measured += _TOO_SMALL
    return Claim(
        says="Best is faster, as no gradients are computed for what is frozen.",
        verdict=verdict,
        measured=measured,
    )


def _replay(replayed: Replayed, found: Comparison) -> Claim:
    best, replay = found["best"].step_time, found["replay"].step_time
    same = "the same, bit for bit" if replayed.is_same else "not the same"
    measured = (
        f"Once all batches are recorded ({format_bytes(replayed.kept_bytes)}), a step takes"
        f" {format_seconds(replay.median_seconds)} in replay, {format_seconds(best.median_seconds)}"
        f" in best; the weights are {same}."
    )
    verdict: Verdict = "holds" if replay.median_seconds < best.median_seconds else "does not hold"
    if not replayed.is_same:
        verdict = "does not hold"
    elif replay.overlaps(best):
        verdict = "within noise"
        measured += " Too close to tell: the middle halves of the times overlap."
    if best.median_seconds < _MOSTLY_OVERHEAD_SECONDS:
        measured += _TOO_SMALL
    if replayed.why_not is not None:
        verdict, measured = "does not hold", f"Nothing was replayed here: {replayed.why_not}."
    return Claim(
        says="Replay is faster than best, with the same weights: it computes what is frozen once.",
        verdict=verdict,
        measured=measured,
    )
