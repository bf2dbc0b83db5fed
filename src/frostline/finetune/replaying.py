"""Whether a job replays its frozen part, where it keeps it, and what that saved."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from torch import nn

from frostline.errors import ConfigError, ReplayError
from frostline.finetune.blame import describe
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.feeding import Feed, ReplayFeed, Timing, plain_feed
from frostline.finetune.loop import Batch, batch_size, model_inputs
from frostline.finetune.prepare import Setup, first_batch
from frostline.finetune.pretrain import cache_folder
from frostline.finetune.result import ReplayReport
from frostline.replay.folder_store import FolderStore
from frostline.replay.frost_line import FrostLine, frost_line
from frostline.replay.limits import ReplayWarning
from frostline.replay.store import Store, open_store
from frostline.units import format_bytes, format_seconds

_SHARE_OF_ROOM = 0.5
"""How much of the free memory, and of the free disk, ``auto`` may take."""

_OFF = "it is switched off (replay: off)"


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What one trial showed.

    Attributes:
        line: where the model was cut for trial; None where it could not be tried out.
        why_not: why nothing is replayed; None if it is.
        first: how many batches had been replayed or recorded before it.
    """

    line: FrostLine | None
    why_not: str | None
    first: int


class Replaying:
    """Whether a job's frozen part is replayed, decided anew where other parts are frozen.

    Args:
        config: the job.
        setup: the model, and what it is trained on.
        note: told in one line what will be kept, and where.

    Attributes:
        feed: gives the loop its batches.

    Raises:
        ConfigError: the folder for the records can't be used.
    """

    def __init__(self, config: FinetuneConfig, setup: Setup, note: Callable[[str], None]) -> None:
        self.feed: Feed = plain_feed
        self._config, self._setup, self._note = config, setup, note
        self._model, self._engine = setup.model, setup.engine
        self._looks: list[_Look] = []
        self._frozen: tuple[str, ...] | None = None
        self._trial_seconds = 0.0
        self._is_noted = False
        self._store: Store | None = None
        if config.replay == "off":
            return
        self._place = _place(config.replay)
        try:
            self._store = open_store(self._place)
        except ReplayError as error:
            raise ConfigError(f"--replay: {error}") from error
        self._replay_feed = ReplayFeed(setup.model, self._store)

    def look(self, frozen: tuple[str, ...]) -> tuple[FrostLine | None, str | None]:
        """Find the frost line as the model stands, unless the same was frozen at the last look.

        Leaves random generators and tensors as they are, and the model in train mode.

        Args:
            frozen: names of what is frozen now.

        Returns:
            The frost line, and why nothing is replayed; None where there is no such thing.
        """
        if self._store is None:
            return None, _OFF
        if frozen == self._frozen:
            return self._looks[-1].line, self._looks[-1].why_not
        self._frozen = frozen
        start = time.perf_counter()
        self._model.train()
        line: FrostLine | None = None
        why_not: str | None
        try:
            with self._engine.autocast():
                line = _trial(self._model, self._example(), self._place)
            why_not = self._why_not(line)
        # Whatever a foreign model does in a trial: it may still train.
        except Exception as error:
            why_not = f"the model could not be tried out: {describe(error)}"
        first = len(self._replay_feed.timings)
        self._looks.append(_Look(line=line, why_not=why_not, first=first))
        self.feed = plain_feed if why_not is not None else self._replay_feed
        self._trial_seconds += time.perf_counter() - start
        if line is not None and why_not is None and not self._is_noted:
            self._is_noted = True
            self._note(
                f"replay: about {format_bytes(self._needed(line))} will be kept in {self._place}"
                f" ({format_bytes(line.bytes_per_sample)} for each of {self._samples} samples)"
            )
        return line, why_not

    def report(self) -> ReplayReport:
        """What was replayed so far, in this process."""
        if self._store is None:
            return _nothing(_OFF)
        if self._looks and all(look.why_not is not None for look in self._looks):
            return _nothing(self._looks[-1].why_not)
        replayers = self._replay_feed.replayers
        stats = [replayer.stats for replayer in replayers]
        replayed = sum(each.replayed for each in stats)
        declined = next((r.declined for r in replayers if r.declined is not None), None)
        recorded = sum(each.recorded for each in stats)
        why_not = declined or "no sample came twice"
        if recorded and len(self._looks) > 1:  # not what holds at the end, as all may train then
            why_not = "what was frozen changed before a sample came twice"
        return ReplayReport(
            place=str(self._place),
            recorded=recorded,
            replayed=replayed,
            plain=sum(each.plain for each in stats),
            skipped_share=self._skipped_share() if replayed else 0.0,
            kept_bytes=self._store.nbytes,
            saved_seconds=self._saved_seconds() if replayed else 0.0,
            why_not=None if replayed else why_not,
        )

    def close(self) -> None:
        """Write out what was recorded, and let go of the store."""
        if self._store is not None:
            self._store.close()

    @property
    def _samples(self) -> int:
        sources = self._setup.sources
        return len(sources.train) + len(sources.held_out)  # type: ignore[arg-type]

    def _example(self) -> Batch:
        return first_batch(self._setup, self._config.batch_size)

    def _needed(self, line: FrostLine) -> int:
        return line.bytes_per_sample * self._samples

    def _why_not(self, line: FrostLine) -> str | None:
        if self._config.replay != "auto" or line.declined or line.replayed_seconds is None:
            return line.declined
        return why_not_worth_it(
            forward_seconds=line.forward_seconds,
            replayed_seconds=line.replayed_seconds,
            needed_bytes=self._needed(line),
            room_bytes=_room(self._place),
        )

    def _parts(self) -> Iterator[tuple[FrostLine, Sequence[Timing]]]:
        """Each line that was replayed at, and the batches that went through the loop then."""
        timings = self._replay_feed.timings
        ends = [*(look.first for look in self._looks[1:]), len(timings)]
        for look, end in zip(self._looks, ends, strict=True):
            if look.line is not None and look.why_not is None:
                yield look.line, timings[look.first : end]

    def _skipped_share(self) -> float:
        """Mean over the batches that were replayed."""
        counted = [
            (line.skipped_share, sum(timing.is_replayed for timing in timings))
            for line, timings in self._parts()
        ]
        count = sum(number for _, number in counted)
        if count == 0:  # all that was replayed was compared with the truth as well
            return counted[-1][0]
        return sum(share * number for share, number in counted) / count

    def _saved_seconds(self) -> float:
        saved = -self._trial_seconds
        for line, timings in self._parts():
            faster = line.forward_seconds - (line.replayed_seconds or 0.0)
            saved += saved_seconds(timings, faster / line.samples)
        return saved


def _nothing(why_not: str | None) -> ReplayReport:
    return ReplayReport(
        place=None,
        recorded=0,
        replayed=0,
        plain=0,
        skipped_share=0.0,
        kept_bytes=0,
        saved_seconds=0.0,
        why_not=why_not,
    )


def why_not_worth_it(
    *, forward_seconds: float, replayed_seconds: float, needed_bytes: int, room_bytes: int
) -> str | None:
    """What speaks against replay where it is possible; None if nothing does.

    Args:
        forward_seconds: measured time of a forward pass.
        replayed_seconds: measured time of the same where it is replayed, reading included.
        needed_bytes: what all samples would take, estimated.
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
        faster_seconds: time of a plain forward pass less that of a replayed one, for each sample.

    >>> slow, fast = (
    ...     Timing(part=0, samples=8, seconds=seconds, is_replayed=seconds < 4)
    ...     for seconds in (5.0, 1.0)
    ... )
    >>> saved_seconds([slow, fast, fast, fast], 0.25)
    4.0
    """
    saved = 0.0
    for part in {timing.part for timing in timings}:
        own = [timing for timing in timings if timing.part == part]
        replayed = [timing.seconds / timing.samples for timing in own if timing.is_replayed]
        if replayed:
            plain = median(replayed) + faster_seconds
            saved += sum(plain * timing.samples - timing.seconds for timing in own)
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


def _trial(model: nn.Module, batch: Batch, place: str | Path) -> FrostLine:
    inputs, samples = model_inputs(batch), batch_size(batch)
    if place == "memory":
        return frost_line(model, inputs, samples=samples)
    # On the same disk, since its reading is timed; but not among the records.
    with (
        TemporaryDirectory(prefix=".trial-", dir=place) as folder,
        FolderStore(folder) as store,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ReplayWarning)  # it is the reason for not replaying
        line = frost_line(model, inputs, samples=samples, store=store)
        # What could not be kept did not come back, for which the trial blames the model.
        return line if store.full is None else replace(line, declined=store.full)


def _room(place: str | Path) -> int:
    """Bytes that records may take, of the memory and of the disk."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such figures on this system
        free = 2**32
    if place != "memory":
        free = min(free, shutil.disk_usage(place).free)
    return int(_SHARE_OF_ROOM * free)
