"""Where the command writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console


def results() -> Console:
    """A console on stdout, for what the user asked for.

    >>> results().print("4 tensors are frozen")
    4 tensors are frozen
    """
    return _console(stderr=False)


def notes() -> Console:
    """A console on stderr, for progress, notes and errors.

    >>> notes().stderr
    True
    """
    return _console(stderr=True)


def print_json(result: object) -> None:
    """Write ``result`` to stdout as one JSON object, and end the line.

    Raises:
        ValueError: ``result`` holds NaN or an infinity, which JSON has no word for.

    >>> print_json({"ok": True})
    {
      "ok": true
    }
    """
    typer.echo(json.dumps(result, indent=2, allow_nan=False))


def _console(*, stderr: bool) -> Console:
    # Imported late and made anew each time: rich costs time to load, and sys.stdout may have
    # been redirected since.
    from rich.console import Console

    # Without the highlighter: it would colour every number and path in a sentence.
    return Console(stderr=stderr, highlight=False)
