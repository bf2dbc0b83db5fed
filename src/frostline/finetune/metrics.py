"""``metrics.jsonl``: one line an epoch, on disk as soon as the epoch ends."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from frostline.errors import ConfigError, OutputError

if sys.platform != "win32":
    import fcntl


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One epoch.

    Attributes:
        epoch: its number, from 1.
        loss: mean training loss, in nats.
        accuracy: share of the held-out targets that come first, from 0 to 1.
        held_out_loss: mean loss on the held-out samples, in nats.
        f1: for token classification, on the held-out samples; else None.
        seconds: how long it took, the held-out samples included.
    """

    epoch: int
    loss: float
    accuracy: float
    held_out_loss: float
    f1: float | None
    seconds: float


class MetricsFile:
    """The file, open and locked.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file

    def keep(self, epochs: int) -> None:
        """Cut off what follows the first ``epochs`` lines.

        It belongs to an epoch of which a kill prevented the checkpoint.
        """
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)[:epochs]
        self._file.truncate(sum(len(line) for line in lines))

    def append(self, metrics: EpochMetrics) -> None:
        """Add one line, which is on its way to the disk on return; raises OutputError."""
        line = (json.dumps(asdict(metrics)) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                # What an unbuffered file does when the disk has room for a part.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _cannot_write(self.path, error) from error


@contextmanager
def open_metrics(path: Path, *, writes: bool = True) -> Iterator[MetricsFile]:
    """Open ``path`` for one process alone, which may then train into this run.

    The lock goes when the process does, however it ends.

    Args:
        path: the file.
        writes: whether this process writes it: of several that train together only one does.

    Raises:
        ConfigError: another process trains into this run.
        OutputError: the file can't be opened.
    """
    if not writes:
        yield MetricsFile(path, io.BytesIO())
        return
    try:
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise _cannot_write(path, error) from error
    with file:
        _lock(file, path)
        yield MetricsFile(path, file)


def _lock(file: IO[bytes], path: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"another process is training in {path.parent}: wait for it") from error
    except OSError:
        pass  # some network file systems have no locks; then there is only the user's care


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {error.strerror or error}; make room, then resume")
