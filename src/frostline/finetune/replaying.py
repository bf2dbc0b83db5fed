"""Whether a job replays its frozen part, where it keeps it, and what that saved."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from torch import nn

from frostline.errors import ConfigError, ReplayError
from frostline.finetune.blame import describe
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.data import Task
from frostline.finetune.feeding import ReplayFeed, Timing
from frostline.finetune.loop import Feed, plain_feed
from frostline.finetune.pretrain import cache_folder
from frostline.finetune.result import ReplayReport
from frostline.replay.folder_store import FolderStore
from frostline.replay.frost_line import FrostLine, frost_line
from frostline.replay.store import Store, open_store
from frostline.units import format_bytes, format_seconds

_SHARE_OF_ROOM = 0.5
"""How much of the free memory, and of the free disk, ``auto`` may take."""


@dataclass(kw_only=True, eq=False)
class Replaying:
    """What was decided for a job.

    Attributes:
        feed: gives the loop its batches.
        line: where the model was cut for trial; None where that was not looked for.
        place: ``memory`` or a folder; None if nothing is replayed.
        why_not: why nothing is replayed; None if it is.
        store: what keeps the records; closed by :meth:`close`.
        trial_seconds: how long it took to decide.
    """

    feed: Feed = plain_feed
    line: FrostLine | None = None
    place: str | None = None
    why_not: str | None = None
    store: Store | None = None
    trial_seconds: float = 0.0

    def report(self) -> ReplayReport:
        """What was replayed so far, in this process."""
        replayers = [] if not isinstance(self.feed, ReplayFeed) else self.feed.replayers
        stats = [replayer.stats for replayer in replayers]
        replayed = sum(each.replayed for each in stats)
        declined = next((r.declined for r in replayers if r.declined is not None), None)
        return ReplayReport(
            place=self.place,
            recorded=sum(each.recorded for each in stats),
            replayed=replayed,
            plain=sum(each.plain for each in stats),
            skipped_share=self.line.skipped_share if self.line and replayed else 0.0,
            kept_bytes=self.store.nbytes if self.store is not None else 0,
            saved_seconds=self._saved_seconds() if replayed else 0.0,
            why_not=None if replayed else self.why_not or declined or "no scan came twice",
        )

    def _saved_seconds(self) -> float:
        if not isinstance(self.feed, ReplayFeed) or self.line is None:
            return 0.0
        faster = self.line.forward_seconds - (self.line.replayed_seconds or 0.0)
        return saved_seconds(self.feed.timings, faster / self.line.samples) - self.trial_seconds

    def close(self) -> None:
        """Write out what was recorded, and let go of the store."""
        if self.store is not None:
            self.store.close()


def decide_replay(
    config: FinetuneConfig, model: nn.Module, task: Task, note: Callable[[str], None]
) -> Replaying:
    """Find the frost line of the model about to train, and decide whether to replay there.

    Leaves random generators and tensors as they are, and the model in train mode.

    Args:
        config: the job.
        model: frozen according to the plan.
        task: the scans.
        note: told in one line what will be kept, and where.

    Raises:
        ConfigError: the folder for the records can't be used.
    """
    if config.replay == "off":
        return Replaying(why_not="it is switched off (replay: off)")
    place = _place(config.replay)
    try:
        store = open_store(place)
    except ReplayError as error:
        raise ConfigError(f"--replay: {error}") from error
    start = time.perf_counter()
    scans = len(task.train) + len(task.held_out)
    model.train()
    try:
        line = _trial(model, task, config.batch_size, place)
    # Whatever a foreign model does in a trial: it may still train.
    except Exception as error:
        store.close()
        return Replaying(why_not=f"the model could not be tried out: {describe(error)}")
    needed = line.bytes_per_sample * scans
    why_not = line.declined
    if why_not is None and config.replay == "auto" and line.replayed_seconds is not None:
        why_not = why_not_worth_it(
            forward_seconds=line.forward_seconds,
            replayed_seconds=line.replayed_seconds,
            needed_bytes=needed,
            room_bytes=_room(place),
        )
    if why_not is not None:
        store.close()
        return Replaying(line=line, why_not=why_not)
    note(
        f"replay: about {format_bytes(needed)} will be kept in {place}"
        f" ({format_bytes(line.bytes_per_sample)} for each of {scans} scans)"
    )
    return Replaying(
        feed=ReplayFeed(model, store),
        line=line,
        place=str(place),
        store=store,
        trial_seconds=time.perf_counter() - start,
    )


def why_not_worth_it(
    *, forward_seconds: float, replayed_seconds: float, needed_bytes: int, room_bytes: int
) -> str | None:
    """What speaks against replay where it is possible; None if nothing does.

    Args:
        forward_seconds: measured time of a forward pass.
        replayed_seconds: measured time of the same where it is replayed, reading included.
        needed_bytes: what all scans would take, estimated.
        room_bytes: what may be taken.

    >>> why_not_worth_it(
    ...     forward_seconds=0.002, replayed_seconds=0.001, needed_bytes=10, room_bytes=100
    ... ) is None
    True
    >>> why_not_worth_it(
    ...     forward_seconds=0.001, replayed_seconds=0.002, needed_bytes=10, room_bytes=100
    ... )
    'reading a batch takes 2 ms here, computing it 1 ms'
    """
    if needed_bytes > room_bytes:
        return (
            f"{format_bytes(needed_bytes)} would be kept, and there is room for"
            f" {format_bytes(room_bytes)}"
        )
    if replayed_seconds >= forward_seconds:
        return (
            f"reading a batch takes {format_seconds(replayed_seconds)} here, computing it"
            f" {format_seconds(forward_seconds)}"
        )
    return None


def saved_seconds(timings: Sequence[Timing], faster_seconds: float) -> float:
    """What replay saved over these batches, estimated; below 0 if it cost more than it saved.

    A plain batch is taken to last as long as a replayed one and what a trial showed replay to be
    faster by. What recording and checking took is in the batches in which it was done.

    Args:
        timings: all batches that went through the loop.
        faster_seconds: time of a plain forward pass less that of a replayed one, for each scan.

    >>> slow, fast = (
    ...     Timing(split=8, scans=8, seconds=seconds, is_replayed=seconds < 4)
    ...     for seconds in (5.0, 1.0)
    ... )
    >>> saved_seconds([slow, fast, fast, fast], 0.25)
    4.0
    """
    saved = 0.0
    for split in {timing.split for timing in timings}:
        own = [timing for timing in timings if timing.split == split]
        replayed = [timing.seconds / timing.scans for timing in own if timing.is_replayed]
        if replayed:
            plain = median(replayed) + faster_seconds
            saved += sum(plain * timing.scans - timing.seconds for timing in own)
    return saved


def replay_folder() -> Path:
    """Where jobs keep what they record unless told otherwise: ``replay`` in the cache folder.

    Raises:
        RuntimeError: no cache folder is set and the user has no home folder.

    >>> replay_folder().name
    'replay'
    """
    return cache_folder() / "replay"


def _place(asked: str) -> str | Path:
    if asked not in ("auto", "on"):
        return asked if asked == "memory" else Path(asked).expanduser()
    try:
        folder = replay_folder()
        folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK) else "memory"
    except (RuntimeError, OSError):  # no home folder, or one that can't be written
        return "memory"


def _trial(model: nn.Module, task: Task, batch_size: int, place: str | Path) -> FrostLine:
    inputs = task.train.inputs[:batch_size]
    if place == "memory":
        return frost_line(model, inputs)
    # On the same disk, since its reading is timed; but not among the records.
    with (
        TemporaryDirectory(prefix=".trial-", dir=place) as folder,
        FolderStore(folder) as store,
    ):
        return frost_line(model, inputs, store=store)


def _room(place: str | Path) -> int:
    """Bytes that records may take, of the memory and of the disk."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such figures on this system
        free = 2**32
    if place != "memory":
        free = min(free, shutil.disk_usage(place).free)
    return int(_SHARE_OF_ROOM * free)
