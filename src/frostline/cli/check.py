"""``frostline check``: the linter's findings for a model."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.chosen_plan import chosen_plan
from frostline.cli.console import print_json, readable_warnings, results, say
from frostline.units import format_number_of

if TYPE_CHECKING:
    from rich.text import Text

    from frostline.check import Finding

PAGES = "docs/checks/"


def check(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="What 'frostline finetune' takes: a Hugging Face name or folder, a timm name,"
            " path/model.py:factory, digits-cnn, tutorial; or the folder of a run.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="What 'frostline finetune' takes: a step is tried on some of it. A run has its"
            " own.",
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(metavar="SELECTOR", help="Freeze this first, the rest as it is; repeatable."),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(metavar="SELECTOR", help="First freeze all else than this; repeatable."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Apply a plan file first, and check it too.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: the findings and their number.")
    ] = False,
) -> None:
    """Look for what goes wrong when layers are frozen, in a model as it comes, or under a plan.

    Each finding is one line: its code, where, what, and the mend. Exit code 1 if one of them is an
    error. With data a step is tried and undone; a run is checked with its plan, its data and its
    optimizer. A scheduler is checked in Python: fl.check(model, optimizer, scheduler).

    Example: frostline check digits-cnn --train head

    Example: frostline check bert-base/ --data reviews.csv --train classifier

    Next: frostline finetune --train head
    """
    chosen = chosen_plan(freeze, train, plan)
    from frostline.check import check as look
    from frostline.finetune.opened import open_to_look

    # What a user's code prints must not get among the results.
    with contextlib.redirect_stdout(sys.stderr), readable_warnings():
        opened = open_to_look(model, data=data, plan=chosen, note=say)
        findings = look(opened.model, opened.optimizer, example=opened.example, plan=opened.plan)
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        print_json(
            {
                "source": model,
                "plan": opened.plan.plain() if opened.plan else None,
                "errors": errors,
                "warnings": len(findings) - errors,
                "findings": [asdict(finding) for finding in findings],
            }
        )
    else:
        _show(findings, errors)
    if errors:
        raise typer.Exit(1)


def _show(findings: list[Finding], errors: int) -> None:
    console = results()
    for finding in findings:
        # Not wrapped: one finding is one line, for grep and for editors.
        console.print(_line(finding), soft_wrap=True)
    if not findings:
        console.print("No findings.")
        return
    console.print(
        f"{format_number_of(len(findings), 'finding')}: {format_number_of(errors, 'error')},"
        f" {format_number_of(len(findings) - errors, 'warning')}."
        f" Each code has a page, such as {PAGES}{findings[0].code}.md",
        soft_wrap=True,
    )


def _line(finding: Finding) -> Text:
    from rich.text import Text

    line = Text(str(finding))
    line.stylize("bold red" if finding.severity == "error" else "bold yellow", 0, 5)
    return line
