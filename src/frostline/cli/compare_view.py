"""What a person sees of a comparison: the ways, the tensors, the claims."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from frostline.compare.claims import Claim, Verdict
from frostline.compare.comparison import Comparison, Way, WayResult
from frostline.units import format_bytes

_MEANING: dict[Way, str] = {
    "none": "nothing is frozen",
    "grad": "way one: requires_grad=False; the optimizer is given everything",
    "optimizer": "way two: the optimizer is given only the rest",
    "best": "both: fl.freeze and fl.optimizer",
    "replay": "best, and fl.replay: what is frozen is computed once",
}
_STYLE: dict[Verdict, str] = {
    "holds": "bold green",
    "holds in part": "bold yellow",
    "does not hold": "bold red",
    "within noise": "bold yellow",
}
_NOISE = "noise"
_ROWS = 24
"""Tensors that are shown one by one; more than can be read at once are shown by module."""
_NUMBERS = {4: "Four", 5: "Five"}
_CLAIMS = {
    False: "What tutorials say, and what was measured here",
    True: "What tutorials say, and we of replay, and what was measured here",
}


def show(
    settings: Mapping[str, Any], found: Comparison, claims: Sequence[Claim], console: Console
) -> None:
    """Print a comparison as tables and sentences that fit 80 columns."""
    meanings = (
        Text.assemble((f"{result.way:<11}", "bold"), (_MEANING[result.way] + _kept(result), "dim"))
        for result in found.ways
    )
    for part in (
        _heading(settings, found),
        _ways_table(found),
        Text("\n").join(meanings),
        _tensor_table(found),
        _agreement(found),
        Text(_CLAIMS[found.ways[-1].way == "replay"], "bold"),
    ):
        console.print()
        console.print(part)
    console.print(_claims(claims))


def _heading(settings: Mapping[str, Any], found: Comparison) -> Text:
    threads = settings["threads"]
    return Text.assemble(
        (f"{_NUMBERS[len(found.ways)]} ways to freeze a part of {settings['model']}", "bold"),
        f"\n{settings['optimizer']}, lr {settings['lr']:g}, {found.steps} steps of"
        f" {settings['batch_size']}, on {threads} CPU thread{'s' * (threads > 1)},"
        f" torch {settings['torch']}",
    )


def _kept(result: WayResult) -> str:
    replayed = result.replayed
    if replayed is None:
        return ""
    if replayed.why_not is not None:
        return "; not here"
    return f"; {format_bytes(replayed.kept_bytes)} kept"


def _ways_table(found: Comparison) -> Table:
    # Without edges, and padded on one side: it just fits 80 columns when all cells are long.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("way", style="bold", no_wrap=True)
    for heading in ("frozen\npart", "trained\npart"):
        table.add_column(heading, no_wrap=True)
    for heading in ("gradients", "optimizer\nstate", "activations", "ms a\nstep", "to\nnone"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in found.ways:
        left = "!" if result.leftover_gradient_bytes else ""
        table.add_row(
            result.way,
            _frozen_part(found, result),
            "moves" if result.moved(found.trained) else Text("still", "bold red"),
            Text(format_bytes(result.gradient_bytes) + left, "red" if left else ""),
            format_bytes(result.optimizer_state_bytes),
            format_bytes(result.activation_bytes),
            f"{result.step_time.median_seconds * 1e3:.3g}",
            _ratio(found, result),
        )
    return table


def _ratio(found: Comparison, result: WayResult) -> str:
    base = found["none"].step_time
    if result.way != "none" and result.step_time.overlaps(base):
        return _NOISE
    return f"{result.step_time.median_seconds / base.median_seconds:.2f}×"


def _frozen_part(found: Comparison, result: WayResult) -> Text:
    if result.way == "none":
        return Text("moves")
    if result.moved(found.frozen):
        return Text("weights!", "bold red")
    moved = result.moved(found.frozen_buffers)
    return Text("buffers!", "bold red") if moved else Text("still", "cyan")


def _tensor_table(found: Comparison) -> Table:
    """How far each tensor moved, in each way; of many tensors, how far those of a module did."""
    held = {*found.frozen, *found.frozen_buffers}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(f"moved in {found.steps} steps", overflow="fold")
    for result in found.ways:
        table.add_column(result.way, justify="right", no_wrap=True)
    for (is_held, name), members in _rows(tuple(found.ways[0].changed), held).items():
        count = f" ({len(members)})" if len(members) > 1 else ""
        label = Text.assemble("❄ " if is_held else "● ", name, (count, "dim"))
        label.stylize("cyan" if is_held else "green", 0, 1)
        table.add_row(label, *(_amount(result, members, is_held) for result in found.ways))
    return table


def _rows(names: Sequence[str], held: Collection[str]) -> dict[tuple[bool, str], list[str]]:
    """Whether it is to be frozen, and a name → the tensors of that row, of which there are few.

    >>> list(_rows(["a.weight", "a.bias", "b.weight"], {"a.weight", "a.bias"}))
    [(True, 'a.weight'), (True, 'a.bias'), (False, 'b.weight')]
    """
    for depth in range(max(name.count(".") for name in names) + 1, 0, -1):
        rows: dict[tuple[bool, str], list[str]] = {}
        for name in names:
            row = (name in held, ".".join(name.split(".")[:depth]))
            rows.setdefault(row, []).append(name)
        if len(rows) <= _ROWS:
            break
    return rows


def _amount(result: WayResult, names: Sequence[str], is_held: bool) -> Text:
    amount = max(result.changed[name] for name in names)
    if amount == 0.0:
        return Text("0", "dim")
    wrong = is_held and result.way != "none"
    return Text(f"{amount:.2g}{' !' if wrong else ''}", "bold red" if wrong else "")


def _agreement(found: Comparison) -> Text:
    """What the marks mean, and whether the predictions came true."""
    legend = "❄ to be frozen, ● trained; largest absolute change of an element."
    if len(found.ways[0].changed) > _ROWS:
        legend += " (n): of n tensors; each is in --json."
    if any(_is_marked(found, result) for result in found.ways):
        legend += " ! moved although frozen, or gradients that zero_grad() leaves behind."
    if _NOISE in (_ratio(found, result) for result in found.ways):
        legend += f" {_NOISE}: too close to the time of none to tell."
    wrong = [result.way for result in found.ways if not _came_true(result)]
    predicted = (
        f"The bytes predicted without computing differ for {', '.join(wrong)} (see --json)."
        if wrong
        else "All bytes are as predicted without computing."
    )
    return Text(f"{legend} {predicted}", "dim")


def _is_marked(found: Comparison, result: WayResult) -> bool:
    moved = result.moved((*found.frozen, *found.frozen_buffers))
    return bool(result.leftover_gradient_bytes) or (bool(moved) and result.way != "none")


def _came_true(result: WayResult) -> bool:
    kinds = ("gradient_bytes", "optimizer_state_bytes", "activation_bytes")
    return all(getattr(result, kind) == getattr(result.predicted, kind) for kind in kinds)


def _claims(claims: Sequence[Claim]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for claim in claims:
        text = Text.assemble((claim.says, "italic"), f"\n{claim.measured}")
        table.add_row(Text(claim.verdict, _STYLE[claim.verdict]), text)
    return table
