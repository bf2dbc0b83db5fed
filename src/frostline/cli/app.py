"""The ``frostline`` command: subcommands, exit codes, and what a person sees when it fails."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from frostline import __version__
from frostline.cli.cache import cache
from frostline.cli.check import check
from frostline.cli.compare import compare
from frostline.cli.console import notes
from frostline.cli.finetune import finetune
from frostline.cli.inspect import inspect
from frostline.cli.merge import merge
from frostline.cli.schedule import schedule
from frostline.cli.verify import verify
from frostline.errors import FrostlineError, FrozenChangedError

WELL = 0
DOES_NOT_HOLD = 1
FAILED = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
READER_GONE = 141  # 128 + SIGPIPE

app = typer.Typer(
    name="frostline",
    help="Freeze layers of a PyTorch model while it is fine-tuned, prove that they did not change,"
    " and see what that saves.",
    epilog="Example: frostline finetune\n\nNext: frostline compare",
    # Its two options would be the longest lines of a help page that should fit on one screen.
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command()(finetune)
app.command()(compare)
app.command()(inspect)
app.command()(check)
app.command()(verify)
app.command()(merge)
app.add_typer(schedule)
app.add_typer(cache)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Goes anywhere.")
    ] = False,
) -> None:
    if version:
        typer.echo(f"frostline {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> NoReturn:
    """Run the command on the arguments of this process, and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without Unicode shows "?" for a tree's lines, rather than an error.
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code; errors are printed, not raised.

    Args:
        arguments: what follows ``frostline`` on the command line.

    Returns:
        0 when all is well; 1 when what was checked does not hold; 2 when the call was wrong or
        could not be carried out; 130 after Ctrl-C; 141 when the reader of stdout has gone away.

    >>> run(["--version"])
    frostline 0.1.0
    0
    """
    debug, ordered = _debug_first(arguments)
    try:
        code = app(ordered, prog_name="frostline", standalone_mode=False)
        typer.echo(nl=False)  # flushes, so that a full disk or a closed pipe shows here
    except FrozenChangedError as error:
        return _fail(str(error), debug=debug, code=DOES_NOT_HOLD)
    except FrostlineError as error:
        return _fail(str(error), debug=debug)
    except typer.TyperException as error:
        return _fail(_usage(error), debug=debug)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _settle_stdout()
        return READER_GONE
    except SystemExit as end:
        # Both typer and rich turn a broken pipe into exit code 1, which here means "does not hold".
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        _settle_stdout()
        return READER_GONE
    except Exception as error:
        _settle_stdout()
        hint = "" if debug else " (--debug shows where)"
        return _fail(f"unexpected {type(error).__name__}: {error}{hint}", debug=debug)
    # Under standalone_mode=False typer returns the code of a typer.Exit instead of raising it.
    return code if isinstance(code, int) else WELL


def _debug_first(arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether ``--debug`` was given, and the arguments with it moved before the subcommand."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != "--debug"]
    debug = len(options) < end
    return debug, [*(["--debug"] if debug else []), *options, *arguments[end:]]


def _fail(message: str, *, debug: bool, code: int = FAILED) -> int:
    if debug:
        traceback.print_exc()
    # soft_wrap: a path or a name that is cut by a line break cannot be copied.
    from rich.text import Text

    notes().print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    return code


def _usage(error: typer.TyperException) -> str:
    """A wrong call in one line: what is wrong, and where the help is."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "frostline"
    message = " ".join(error.format_message().split())
    end = "" if message.endswith((".", "?")) else "."
    return f"{message}{end} See '{command} --help'"


def _settle_stdout() -> None:
    """If what is buffered can't be written, drop it: Python would try, and fail, again at exit."""
    try:
        typer.echo(nl=False)
    except OSError:
        with contextlib.suppress(OSError):  # it has no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
