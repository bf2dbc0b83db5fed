"""``frostline verify``: which tensors of a checkpoint changed, and whether the plan was kept."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frostline.cli.checkpoint_progress import checkpoint_progress
from frostline.cli.console import print_json, results
from frostline.units import format_bytes, format_number_of

if TYPE_CHECKING:
    from frostline.checkpoint import Difference, Verification

_DOES_NOT_HOLD = 1
_LINES = 40


def verify(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE",
            help="The checkpoint before training: .safetensors, .pt, a Hugging Face folder.",
        ),
    ],
    tuned: Annotated[
        Path, typer.Argument(metavar="TUNED", help="The one after: the same kinds, or a delta.")
    ],
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What was to be frozen; of a delta, its own if left out."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SELECTOR", help="What may differ, such as the base's old head; repeatable."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: every tensor that differs.")
    ] = False,
) -> None:
    """Compare two checkpoints bit by bit: what changed, what is new, what is missing.

    With a plan, exit code 1 if a tensor that it freezes is not in both, or not bitwise the same.
    Reads both as streams, so that models of any size fit; nothing is unpickled.

    Example: frostline verify base.safetensors tuned.safetensors --plan plan.yaml

    Next: frostline merge BASE DELTA OUT
    """
    # Late: torch takes a second to load, and --help should not.
    from frostline.checkpoint import verify_checkpoints
    from frostline.freezing import Plan

    chosen = Plan.load(plan) if plan is not None else None
    with checkpoint_progress("comparing") as progress:
        found = verify_checkpoints(base, tuned, plan=chosen, ignore=ignore or (), progress=progress)
    if as_json:
        print_json(_as_json(found))
    else:
        _show(found)
    if not found.kept:
        raise typer.Exit(_DOES_NOT_HOLD)


def _as_json(found: Verification) -> dict[str, Any]:
    return {
        "base": str(found.base),
        "tuned": str(found.tuned),
        "plan": found.plan.plain() if found.plan else None,
        "kept": found.kept if found.plan else None,
        "same": found.same,
        "frozen": found.frozen,
        "bytes": found.nbytes,
        **{
            state: [each.name for each in found.differences if each.state == state]
            for state in ("changed", "added", "missing")
        },
        "broken": [each.name for each in found.differences if each.breaks],
        "differences": [_plain(each) for each in found.differences],
    }


def _plain(difference: Difference) -> dict[str, Any]:
    amount = difference.max_abs
    # JSON has no NaN and no infinity.
    finite = amount is not None and amount - amount == 0
    return {**asdict(difference), "max_abs": amount if finite else None}


def _show(found: Verification) -> None:
    console = results()
    shown = found.differences[:_LINES]
    width = max((len(each.name) for each in shown), default=0)
    for difference in shown:
        # Not wrapped: one tensor is one line, for grep.
        console.print(_line(difference, width).rstrip(), soft_wrap=True, markup=False)
    hidden = len(found.differences) - _LINES
    if hidden > 0:
        console.print(f"… and {hidden:,} more; --json lists all")
    counts = {
        state: sum(each.state == state for each in found.differences)
        for state in ("changed", "added", "missing")
    }
    told = [f"{count:,} {state}" for state, count in counts.items() if count]
    console.print(
        f"{format_number_of(found.same, 'tensor')} the same{''.join(f', {one}' for one in told)};"
        f" {format_bytes(found.nbytes)} read.",
        soft_wrap=True,
    )
    console.print(_verdict(found), soft_wrap=True, markup=False)


def _line(difference: Difference, width: int) -> str:
    words = [f"{difference.state:<8}{difference.name:<{width}}"]
    if difference.max_abs is not None:
        words.append(f"by at most {difference.max_abs:.3g}")
    if difference.reason:
        words.append(difference.reason)
    if difference.breaks:
        words.append("FROZEN" if difference.frozen else "NOT IN THE DELTA")
    return "  ".join(words)


def _verdict(found: Verification) -> str:
    broken = sum(difference.breaks for difference in found.differences)
    if broken:
        return (
            f"The plan was not kept: {format_number_of(broken, 'tensor')} that should be bitwise"
            " the same in both"
            f" {'is' if broken == 1 else 'are'} not. What may differ: --ignore SELECTOR"
        )
    if found.plan is None:
        base, tuned = shlex.quote(str(found.base)), shlex.quote(str(found.tuned))
        return f"Next: frostline verify {base} {tuned} --plan plan.yaml"
    return f"The plan was kept: {format_number_of(found.frozen, 'frozen tensor')}, bit for bit."
