"""Where the command writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

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


def say(text: str) -> None:
    """Print one line to stderr: as it is, since a path may hold what rich takes for markup.

    >>> say("checking 36 images in photos[1]")
    """
    notes().print(text, soft_wrap=True, markup=False)


@contextlib.contextmanager
def readable_warnings(tell: Callable[[str], object] = say) -> Iterator[None]:
    """Let a warning of ours be one line for the user of a command; others stay as they are.

    What transformers logs for programmers is not shown, unless ``TRANSFORMERS_VERBOSITY`` asks.

    Args:
        tell: is given the line.

    >>> from frostline import GuardWarning
    >>> with readable_warnings(print):
    ...     warnings.simplefilter("always")
    ...     warnings.warn("nothing more is recorded", GuardWarning, stacklevel=1)
    warning: nothing more is recorded
    """
    # Read once, when transformers is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        plainly = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **to: Any) -> None:
            if category.__module__.startswith("frostline."):
                tell(f"warning: {message}")
            else:
                plainly(message, category, *place, **to)

        warnings.showwarning = show
        yield


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
