"""``frostline inspect``: a model or a checkpoint as a tree."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.chosen_plan import chosen_plan
from frostline.cli.console import print_json, readable_warnings, results, say
from frostline.cli.frost_line_view import line_summary, plain_line, replay_cells
from frostline.errors import ConfigError
from frostline.report.tree import Node, TensorRecord, build_tree
from frostline.units import format_bytes, format_count, format_names, format_number_of

if TYPE_CHECKING:
    from frostline.freezing import Plan
    from frostline.replay.frost_line import FrostLine


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="What 'frostline finetune' takes: a Hugging Face name or folder, a timm name,"
            " path/model.py:factory, digits-cnn, tutorial; a checkpoint (.safetensors, .pt); or the"
            " folder of a run.",
        ),
    ],
    freeze: Annotated[
        list[str] | None,
        typer.Option(metavar="SELECTOR", help="Show this frozen, the rest as it is; repeatable."),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(metavar="SELECTOR", help="Show this trainable, all else frozen; repeatable."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show what a plan file does.")
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="Of one sample, as in 3,224,224: shows what replay skips and keeps. Built-in"
            " networks know theirs.",
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Levels of the tree to show; all if left out."),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="Show each of several equal blocks, and each buffer.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: totals, tree, every tensor.")
    ] = False,
) -> None:
    """Show a model as a tree: frozen or trainable, parameters, bytes, dtypes, tied tensors.

    With --freeze, --train or --plan it shows what these would do; nothing is written. Where an
    input is known too, it shows the frost line: what replay skips and keeps. A checkpoint is
    listed without loading its weights, and nothing in it is unpickled.

    Example: frostline inspect digits-cnn --train head

    Next: frostline finetune --train head
    """
    chosen = chosen_plan(freeze, train, plan)
    shape = _sizes(input_shape)
    kind, records, types, line = _read(model, chosen, shape)
    tree = build_tree(records, types)
    if as_json:
        print_json(
            {
                "source": model,
                "kind": kind,
                "type": tree.type_name or None,
                "plan": chosen.plain() if chosen else None,
                "totals": asdict(tree.totals),
                "tree": _plain(tree),
                "tensors": [asdict(record) for record in records],
                "frost_line": plain_line(line) if line else None,
            }
        )
        return
    from frostline.cli.tree_table import tree_table

    console = results()
    title = Path(model).name
    table = tree_table(
        tree,
        title=title,
        width=console.width,
        max_depth=depth,
        everything=show_all,
        replay=replay_cells(line) if line else {},
    )
    console.print(table)
    console.print()
    said = [*_summary(tree, records), *(line_summary(line) if line else ())]
    for sentence in (*said, f"Next: {_next_step(model, tree, freeze, train, plan)}"):
        console.print(sentence, soft_wrap=True, markup=False)


def _sizes(text: str | None) -> tuple[int, ...] | None:
    """Sizes written as 3,224,224.

    >>> _sizes("3,224,224")
    (3, 224, 224)
    """
    if text is None:
        return None
    try:
        sizes = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise ConfigError(f"--input-shape: got {text!r}, expected sizes of a sample, as 3,224,224")
    return sizes


def _read(
    source: str, plan: Plan | None, shape: tuple[int, ...] | None
) -> tuple[str, list[TensorRecord], dict[str, str], FrostLine | None]:
    """What ``source`` is, its tensors under the plan, its modules' classes, its frost line."""
    from frostline.checkpoint.listing import apply_plan, is_checkpoint, read_listing, skeleton
    from frostline.finetune.examples import example_shape, find_frost_line, frost_line_of_run
    from frostline.finetune.networks import BUILTIN
    from frostline.finetune.opened import open_to_look, shape_of_run
    from frostline.finetune.run_folder import PLAN, weights_of
    from frostline.freezing import Plan, freeze
    from frostline.report.records import listing_records, model_records, module_types

    tuned = shape_of_run(Path(source)) if shape is None else None
    if tuned is not None:
        held = freeze(tuned, plan or Plan.load(Path(source) / PLAN)).buffers
        return "run", model_records(tuned, held), module_types(tuned), None
    if source not in BUILTIN and is_checkpoint(source):
        weights = weights_of(Path(source))
        if shape is not None:
            raise ConfigError(
                "--input-shape: a checkpoint holds no code to run; inspect the model it belongs to"
            )
        listing = read_listing(weights)
        if plan is None:
            return "checkpoint", listing_records(listing), {}, frost_line_of_run(Path(source))
        stand_in = skeleton(listing)
        held = apply_plan(stand_in, plan).buffers
        frozen = {record.name: record.frozen for record in model_records(stand_in, held)}
        line = frost_line_of_run(Path(source), plan)
        return "checkpoint", listing_records(listing, frozen), {}, line
    with contextlib.redirect_stdout(sys.stderr), readable_warnings():
        model = open_to_look(source, note=say).model
    held = freeze(model, plan).buffers if plan else ()
    # Before the trial: lazy modules are shown as they come.
    records, types = model_records(model, held), module_types(model)
    shape = shape or (example_shape(source) if plan else None)
    line = find_frost_line(model, source, shape) if shape else None
    return "model", records, types, line


def _plain(node: Node) -> dict[str, object]:
    return {
        "name": node.name,
        "path": node.path,
        "type": node.type_name or None,
        "state": node.state,
        "dtypes": node.dtypes,
        **asdict(node.totals),
        "tensors": [record.name for record in node.tensors],
        "children": [_plain(child) for child in node.children],
    }


def _summary(tree: Node, records: list[TensorRecord]) -> list[str]:
    totals = tree.totals
    held = (
        f"{format_count(totals.parameters)} parameters in"
        f" {format_number_of(totals.parameter_tensors, 'tensor')}, {'/'.join(tree.dtypes)},"
        f" {format_bytes(totals.parameter_bytes)}"
    )
    if totals.buffer_tensors:
        buffers = format_number_of(totals.buffer_tensors, "buffer")
        held += f"; {buffers}, {format_bytes(totals.buffer_bytes)}"
    lines = [f"{held}."]
    if tree.state != "unknown":
        lines.append(
            f"Trainable: {format_count(totals.trainable)} parameters"
            f" ({_percent(totals.trainable, totals.parameters)}),"
            f" {format_bytes(totals.trainable_bytes)}."
        )
    ties = [f"{record.name} = {record.same_as}" for record in records if record.same_as]
    if ties:
        lines.append(f"Tied, so frozen or trained together: {format_names(ties)}.")
    return lines


def _percent(part: int, whole: int) -> str:
    """A share that is never rounded to nothing or to all of it.

    >>> _percent(1, 3), _percent(1, 10_000), _percent(9_999, 10_000), _percent(0, 5)
    ('33.3 %', '< 0.1 %', '> 99.9 %', '0 %')
    """
    share = 100 * part / whole if whole else 0.0
    if share in (0, 100):
        return f"{share:.0f} %"
    if share < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if share > 99.9 else f"{share:.1f} %"


def _next_step(
    source: str, tree: Node, freeze: list[str] | None, train: list[str] | None, plan: Path | None
) -> str:
    """What a person would do next: try a plan, or use the one that was tried."""
    given = [f"--freeze {shlex.quote(selector)}" for selector in freeze or []]
    given += [f"--train {shlex.quote(selector)}" for selector in train or []]
    given += [f"--plan {shlex.quote(str(plan))}"] if plan else []
    if not given:
        return f"frostline inspect {shlex.quote(source)} {_example(tree)}"
    if source == "digits-cnn":
        return f"frostline finetune {' '.join(given)}"
    if source == "tutorial":
        return " ".join(["frostline compare", *(given if freeze else [])])
    if plan:
        return f"in Python, fl.freeze(model, fl.Plan.load({str(plan)!r}))"
    chosen = freeze or train or []
    what = repr(chosen[0] if len(chosen) == 1 else chosen)
    return f"in Python, fl.freeze(model, {what if freeze else f'all_but={what}'})"


def _example(tree: Node) -> str:
    """Options that show something of this model: its last part with parameters, trained alone."""
    parts = [child for child in tree.children if child.dtypes]
    if len(parts) == 1:
        return _example(parts[0])
    tensors = [record.name for record in tree.tensors if record.kind == "parameter"]
    if parts:
        return f"--train {parts[-1].path}"
    return f"--train {tensors[-1]}" if len(tensors) > 1 else "--json"
