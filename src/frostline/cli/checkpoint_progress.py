"""How far the reading of a large checkpoint is, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from frostline.cli.console import notes


@contextmanager
def checkpoint_progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with bytes and speed while the block runs; nothing where stderr is no terminal.

    Args:
        doing: what is done, such as ``comparing``.

    Yields:
        What to call with the bytes that are done, and all that there are.

    >>> with checkpoint_progress("comparing") as progress:
    ...     progress(1, 2)
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = notes()
    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
