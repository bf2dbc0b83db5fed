"""A run's own folder: what is in it, and how it comes to be whole or not at all.

======================  =======================================================================
``plan.yaml``           what was frozen and what was trained; under a schedule, what stays frozen
``schedule.yaml``       the schedule with every option of it, if there is one
``config.yaml``         the configuration, every field of it
``metrics.jsonl``       one line an epoch; appended to
``frozen.json``         fingerprints of what is frozen, from before the first step
``base.json``           fingerprints of the whole model from then, and which data it was
``checkpoint.pt``       where ``--resume`` goes on; removed once the run is finished
``best.pt``             the best epoch, if that is an earlier one; removed likewise
``model.safetensors``   the tuned weights, of a model that has no base checkpoint
``model/``              for a model that has: ``tuned.safetensors``, what was trained, beside its
                        configuration and its tokenizer or image processor
``timeline.json``       what the schedule froze when; ``timeline.png``, if matplotlib is there
``result.json``         accuracy, proof, savings
``status.json``         running, interrupted, finished or failed, and how to go on
======================  =======================================================================
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from frostline.errors import ConfigError, OutputError
from frostline.files import replace_atomically, write_atomically

PLAN = "plan.yaml"
SCHEDULE = "schedule.yaml"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
FROZEN = "frozen.json"
BASE = "base.json"
CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
MODEL = "model.safetensors"
MODEL_FOLDER = "model"
DELTA = "tuned.safetensors"
TIMELINE = "timeline.json"
PLOT = "timeline.png"
RESULT = "result.json"
STATUS = "status.json"

State = Literal["running", "interrupted", "finished", "failed"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a run stands.

    Attributes:
        state: ``running`` also after a kill that left no time to say otherwise.
        epoch: epochs that are finished and kept.
        epochs: epochs that were asked for.
        resumable: whether ``--resume`` takes it.
        message: one line for a person.
        next: the command to go on with.
    """

    state: State
    epoch: int
    epochs: int
    resumable: bool
    message: str
    next: str


class RunFolder:
    """A folder that :func:`create_run` made, or that an earlier process did.

    Args:
        path: the folder.
        writes: whether this process writes in it: among several only the main one does.

    Attributes:
        path: the folder.
        writes: as given.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes

    @property
    def resume_command(self) -> str:
        """The command line that goes on with this run."""
        return f"frostline finetune --resume {shlex.quote(str(self.path))}"

    @property
    def restart_command(self) -> str:
        """The command line that starts a new run of the same configuration."""
        return f"frostline finetune {shlex.quote(str(self.path / CONFIG))}"

    @property
    def inspect_command(self) -> str:
        """The command line that shows the tuned weights."""
        return f"frostline inspect {shlex.quote(str(self.path / MODEL))}"

    def merge_command(self, base: Path) -> str:
        """The command line that makes a whole model of a base checkpoint and the delta."""
        delta = self.path / MODEL_FOLDER / DELTA
        return " ".join(
            ["frostline merge", *(shlex.quote(str(p)) for p in (base, delta, self.path / "merged"))]
        )

    def write(self, name: str, content: bytes) -> None:
        """Write or replace one file, whole or not at all; raises OutputError."""
        if self.writes:
            write_atomically(self.path / name, content)

    def keep_best(self) -> None:
        """Keep the checkpoint as it is as that of the best epoch; raises OutputError."""
        if self.writes:
            replace_atomically(
                self.path / BEST, lambda file: shutil.copyfile(self.path / CHECKPOINT, file)
            )

    def read_json(self, name: str) -> dict[str, object]:
        """Read one JSON object; raises ConfigError if it is not there or damaged."""
        try:
            content = json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is damaged"
            raise ConfigError(
                f"{self.path} is not a run that can be resumed: {name}: {reason}"
            ) from error
        if not isinstance(content, dict):
            raise ConfigError(f"{self.path} is not a run that can be resumed: {name}: no object")
        return content

    def set_status(self, status: Status) -> None:
        """Write ``status.json``; raises OutputError."""
        self.write(STATUS, json_bytes(asdict(status)))

    def set_running(self, *, epoch: int, epochs: int) -> None:
        """Write a ``status.json`` that is right both while it trains and after a kill."""
        self.set_status(
            Status(
                state="running",
                epoch=epoch,
                epochs=epochs,
                resumable=True,
                message="in training, or killed",
                next=self.resume_command,
            )
        )

    def refuse_to_resume(self) -> None:
        """Raise ConfigError, with what to do instead, unless the run was cut short."""
        status = self.read_json(STATUS)
        if status.get("resumable") is not True:
            raise ConfigError(
                f"{self.path} can't be resumed, it is {status.get('state')}:"
                f" {status.get('message')}; to train anew: {self.restart_command}"
            )


def create_run(out: Path, name: str, fill: Callable[[RunFolder], object]) -> RunFolder:
    """Make a new folder ``<out>/<name>-<timestamp>`` and have ``fill`` write its first files.

    Never an existing one: the second run in a second gets ``-2``, and so on.

    Args:
        out: where to make it; made too if it is missing.
        name: what to call it; characters that file systems refuse are replaced.
        fill: writes the files without which the folder is none.

    Raises:
        OutputError: something can't be written. Whatever was made is removed again.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as out:
    ...     run = create_run(Path(out), "digits", lambda run: run.write(PLAN, b"frostline: 1"))
    ...     sorted(file.name for file in run.path.iterdir())
    ['plan.yaml']
    """
    made: list[Path] = []
    try:
        for folder in (*reversed(out.parents), out):
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
        made.append(_new_folder(out, f"{_safe(name)}-{datetime.now():%Y%m%d-%H%M%S}"))
        run = RunFolder(made[-1])
        fill(run)
    except BaseException as error:
        _remove(made, out)
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
            reason = "a file is in the way" if in_the_way else error.strerror or str(error)
            raise OutputError(
                f"cannot make a run folder in {out}: {reason}; choose another place with --out"
            ) from error
        raise
    return run


def is_run(path: Path) -> bool:
    """Whether ``path`` is the folder of a run.

    >>> is_run(Path("bert-base"))
    False
    """
    return (path / CONFIG).is_file() and (path / PLAN).is_file()


def weights_of(path: Path) -> Path:
    """Where the weights of a run lie, if ``path`` is one that has a folder for them; else ``path``.

    Raises:
        ConfigError: it is a run that has left no weights.

    >>> str(weights_of(Path("bert-base")))
    'bert-base'
    """
    if not is_run(path):
        return path
    if (path / MODEL_FOLDER).is_dir():
        return path / MODEL_FOLDER
    if not (path / MODEL).is_file():
        again = RunFolder(path).resume_command
        raise ConfigError(f"the run {path} has left no weights yet; to finish it: {again}")
    return path


def json_bytes(content: Mapping[str, object]) -> bytes:
    """A JSON object as a file holds it."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _new_folder(out: Path, name: str) -> Path:
    number = 1
    while True:
        path = out / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            # mkdir decides, not a look beforehand: another process may be faster.
            if path.is_symlink() or path.exists():
                number += 1
                continue
            raise
        return path


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "run"


def _remove(made: list[Path], out: Path) -> None:
    """Remove the run's folder with all in it, and the folders above it that are empty."""
    for folder in reversed(made):
        with suppress(OSError):
            if folder.parent == out:
                shutil.rmtree(folder)
            else:
                folder.rmdir()
