"""``frostline cache``: what replay has recorded in a folder, and how to be rid of it."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.console import notes, print_json, results
from frostline.errors import ConfigError
from frostline.units import format_bytes, format_count, format_number_of, format_seconds

if TYPE_CHECKING:
    from rich.table import Table

    from frostline.replay.cache import CacheEntry

cache = typer.Typer(
    name="cache",
    help="What replay has recorded: list it, clear it.",
    epilog="Example: frostline cache list\n\nNext: frostline cache clear --older-than 30d",
    rich_markup_mode="markdown",
)

_UNITS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}

Folder = Annotated[
    Path | None,
    typer.Argument(
        metavar="FOLDER",
        help="Where it was recorded; where frostline finetune records if left out.",
    ),
]
Age = Annotated[
    str | None,
    typer.Option(
        "--older-than", metavar="AGE", help="Only what was not used for so long: 12h, 30d, 4w."
    ),
]


@cache.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@cache.command(name="list")
def list_(
    folder: Folder = None,
    older_than: Age = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the table.")
    ] = False,
) -> None:
    """List what is recorded, the last used first: scans, bytes, and when it was last used.

    Example: frostline cache list --older-than 30d

    Next: frostline cache clear --older-than 30d
    """
    place, entries = _entries(folder, _age(older_than))
    if as_json:
        print_json(
            {
                "folder": str(place),
                "nbytes": sum(entry.nbytes for entry in entries),
                "entries": [_plain(entry) for entry in entries],
            }
        )
        return
    if entries:
        results().print(_table(entries))
    results().print(_total(entries, place), soft_wrap=True)


@cache.command()
def clear(
    folder: Folder = None,
    older_than: Age = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; needs --yes.")
    ] = False,
) -> None:
    """Delete what is recorded, and nothing else in the folder. It is recorded again when needed.

    Example: frostline cache clear --older-than 30d --yes

    Next: frostline cache list
    """
    age = _age(older_than)
    place, entries = _entries(folder, age)
    if as_json and not yes:
        raise ConfigError("--json asks no questions: give --yes as well to delete")
    if entries and not yes:
        notes().print(_total(entries, place), soft_wrap=True)
        if not _confirmed():
            raise typer.Exit
    freed = 0
    if entries:
        from frostline.replay.cache import clear as delete

        freed = delete(place, age)
    if as_json:
        print_json({"folder": str(place), "cleared": len(entries), "freed_bytes": freed})
    else:
        deleted = format_number_of(len(entries), "shelf").replace("shelfs", "shelves")
        results().print(
            f"Deleted {deleted} in {place}: {format_bytes(freed)} freed.", soft_wrap=True
        )


def _confirmed() -> bool:
    """Ask on stderr; the end of the input, as in a script, is a no."""
    typer.echo("Delete this? [y/N] ", nl=False, err=True)
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        typer.echo(err=True)
        raise ConfigError("nothing was deleted: give --yes where nobody can answer") from None


def _entries(folder: Path | None, age: timedelta | None) -> tuple[Path, list[CacheEntry]]:
    """The folder that is meant, and what is in it; the default one need not be there yet."""
    from frostline.replay.cache import list_entries

    place = folder if folder is not None else _default_folder()
    if folder is None and not place.is_dir():
        return place, []
    now = datetime.now(timezone.utc)
    return place, [
        entry for entry in list_entries(place) if age is None or now - entry.last_used > age
    ]


def _default_folder() -> Path:
    from frostline.finetune.replaying import replay_folder

    try:
        return replay_folder()
    except RuntimeError as error:
        raise ConfigError(
            "there is no home folder to look in: name the folder, or set FROSTLINE_CACHE"
        ) from error


def _age(text: str | None) -> timedelta | None:
    """How long an age written as 12h, 30d or 4w is.

    >>> _age("2w")
    datetime.timedelta(days=14)
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hdw])", text.strip().lower())
    if found is None:
        raise ConfigError(f"--older-than: got {text!r}, expected an age such as 12h, 30d or 4w")
    try:
        return timedelta(seconds=float(found[1]) * _UNITS[found[2]])
    except OverflowError as error:
        raise ConfigError(f"--older-than: {text!r} is longer than time can be counted") from error


def _table(entries: list[CacheEntry]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("shelf", no_wrap=True)
    for heading in ("records", "bytes", "last used"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    now = datetime.now(timezone.utc)
    for entry in entries:
        ago = max((now - entry.last_used).total_seconds(), 0.0)
        table.add_row(
            entry.key[:12],
            format_count(entry.entries),
            format_bytes(entry.nbytes),
            f"{_coarse(ago)} ago",
            entry.note,
        )
    return table


def _coarse(seconds: float) -> str:
    """A time long past in one unit.

    >>> _coarse(30.2), _coarse(7200), _coarse(3 * 86400)
    ('30 s', '2 h 0 min', '3 days')
    """
    return (
        format_number_of(int(seconds / 86400), "day")
        if seconds >= 2 * 86400
        else format_seconds(int(seconds))
        if seconds >= 1
        else "0 s"
    )


def _total(entries: list[CacheEntry], place: Path) -> str:
    records = format_number_of(sum(entry.entries for entry in entries), "record")
    return f"{records}, {format_bytes(sum(entry.nbytes for entry in entries))}, in {place}."


def _plain(entry: CacheEntry) -> dict[str, object]:
    return {
        **asdict(entry),
        "created": entry.created.isoformat(),
        "last_used": entry.last_used.isoformat(),
    }
