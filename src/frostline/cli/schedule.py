"""``frostline schedule``: what schedules there are, and a first one to edit."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from frostline.cli.console import notes, print_json, readable_warnings, results, say
from frostline.errors import OutputError

schedule = typer.Typer(
    name="schedule",
    help="When to freeze what: list the schedules, write a first one to edit.",
    epilog="Example: frostline schedule list\n\nNext: frostline finetune --schedule NAME",
    rich_markup_mode="markdown",
)


@schedule.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@schedule.command(name="list")
def list_(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: names, summaries, options.")
    ] = False,
) -> None:
    """List the schedules that --schedule takes by name, a line each.

    Example: frostline schedule list

    Next: frostline finetune --schedule autofreeze
    """
    from frostline.schedules import registry, to_plain

    summaries = {name: _summary(method) for name, method in registry.items()}
    if as_json:
        methods = [
            {"name": name, "summary": summaries[name], "options": _options(to_plain(method()))}
            for name, method in registry.items()
        ]
        print_json({"schedules": methods})
        return
    from rich.text import Text

    wide = max(map(len, registry))
    for name, summary in summaries.items():
        results().print(Text.assemble((f"{name:<{wide}}", "bold"), f"  {summary}"), soft_wrap=True)


@schedule.command()
def init(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="What 'frostline finetune' takes: a Hugging Face name or folder, a timm name,"
            " path/model.py:factory, digits-cnn, tutorial.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write it there, to a new file; stdout if left out."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: the text, and where it is.")
    ] = False,
) -> None:
    """Write a first schedule for a model, to be edited: the head first, then one more block each
    epoch, then everything.

    Example: frostline schedule init digits-cnn --out schedule.yaml

    Next: frostline finetune --schedule schedule.yaml
    """  # noqa: D205 (typer shows the first paragraph, and it takes two lines)
    from frostline.finetune.sources.opening import open_model
    from frostline.schedules import write_first_schedule

    with contextlib.redirect_stdout(sys.stderr), readable_warnings():
        loaded = open_model(model, note=say)
    text = write_first_schedule(loaded)
    if out is not None:
        _write_new(out, text)
    if as_json:
        print_json({"schedule": text, "out": None if out is None else str(out)})
    elif out is None:
        typer.echo(text, nl=False)
    else:
        notes().print(
            f"{out} is written: edit it. Next: frostline finetune --schedule {out}",
            soft_wrap=True,
            markup=False,
        )


def _write_new(path: Path, text: str) -> None:
    """Never over a file that is there: somebody may have edited it."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise OutputError(f"{path} is there already: name another file with --out") from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _summary(method: type) -> str:
    """The first sentence of its docstring."""
    return (method.__doc__ or "").strip().splitlines()[0].replace("`", "")


def _options(plain: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in plain.items() if key != "schedule"}
