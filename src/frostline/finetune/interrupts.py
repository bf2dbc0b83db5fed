"""Ctrl-C and SIGTERM, turned into a stop at a safe place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Interrupted(Exception):
    """Someone asked the training to stop; everything up to the last epoch is on disk.

    Attributes:
        run: the run folder, as the user would write it.
        epoch: epochs that are finished and kept.
        epochs: epochs that were asked for.
        go_on: the command line that continues.
    """

    def __init__(self, *, run: str, epoch: int, epochs: int, go_on: str) -> None:
        super().__init__(f"interrupted after epoch {epoch} of {epochs}; to go on: {go_on}")
        self.run = run
        self.epoch = epoch
        self.epochs = epochs
        self.go_on = go_on


@dataclass(kw_only=True)
class StopRequest:
    """Whether a signal asked to stop.

    Attributes:
        made: True from the first signal on.
    """

    made: bool = False

    def obey(self) -> None:
        """Raise ``KeyboardInterrupt`` if a stop was asked for; called between two steps."""
        if self.made:
            raise KeyboardInterrupt


_early = StopRequest()


@contextmanager
def loading() -> Iterator[None]:
    """While this is open a Ctrl-C is not lost, even if what runs swallows ``KeyboardInterrupt``.

    Imports of compiled modules have been seen to do so: then :func:`listening` starts with the
    request already made.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        _early.made = True
        raise KeyboardInterrupt

    _early.made = False
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _early.made = False


@contextmanager
def listening() -> Iterator[StopRequest]:
    """While this is open the first SIGINT or SIGTERM only makes a request to stop.

    So a signal can't fall into the middle of a file that is being written. A second one raises
    ``KeyboardInterrupt`` at once, for a step that takes too long to wait for. Outside the main
    thread signals can't be handled, and the request is never made.
    """
    request = StopRequest(made=_early.made)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
