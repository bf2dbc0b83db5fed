"""Freeze layers of a PyTorch model, prove that they stayed frozen, get the savings.

The public names are loaded when they are first used: ``import frostline`` imports no torch, so
the command line answers at once and a program pays only for what it takes.

>>> import frostline as fl
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 10))
>>> fl.freeze(model, "0").names
('0.weight', '0.bias')
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from frostline.errors import (
    CheckpointError,
    ConfigError,
    FrostlineError,
    FrozenChangedError,
    GuardError,
    GuardWarning,
    MeasureError,
    MissingExtraError,
    ModelSourceError,
    ModelTypeError,
    OptimizerError,
    OutputError,
    PlanError,
    ReplayError,
    ScheduleError,
    SelectorError,
    TransitionError,
)

if TYPE_CHECKING:
    from frostline import schedules
    from frostline.check import Finding, check
    from frostline.checkpoint import Delta, load_trained, save_trained
    from frostline.freezer import Event, Freezer
    from frostline.freezing import (
        Frozen,
        FrozenRows,
        Plan,
        Rule,
        freeze,
        freeze_rows,
        resume_freeze,
        unfreeze,
    )
    from frostline.guard import Guard, GuardReport, guard
    from frostline.optim import (
        ResumeReport,
        SyncReport,
        load_optimizer_state,
        optimizer,
        optimizer_state,
        sync,
    )
    from frostline.proof import fingerprint
    from frostline.replay import (
        FrostLine,
        HomeSampler,
        Replay,
        Replayer,
        ReplayStats,
        frost_line,
        replay,
    )
    from frostline.replay.limits import ReplayWarning
    from frostline.selection import (
        Selection,
        before,
        first,
        glob,
        kind,
        last,
        regex,
        select,
        where,
    )
    from frostline.selection.blocks import Blocks, blocks

__version__ = "0.1.0"

__all__ = [
    "Blocks",
    "CheckpointError",
    "ConfigError",
    "Delta",
    "Event",
    "Finding",
    "Freezer",
    "FrostLine",
    "FrostlineError",
    "Frozen",
    "FrozenChangedError",
    "FrozenRows",
    "Guard",
    "GuardError",
    "GuardReport",
    "GuardWarning",
    "HomeSampler",
    "MeasureError",
    "MissingExtraError",
    "ModelSourceError",
    "ModelTypeError",
    "OptimizerError",
    "OutputError",
    "Plan",
    "PlanError",
    "Replay",
    "ReplayError",
    "ReplayStats",
    "ReplayWarning",
    "Replayer",
    "ResumeReport",
    "Rule",
    "ScheduleError",
    "Selection",
    "SelectorError",
    "SyncReport",
    "TransitionError",
    "__version__",
    "before",
    "blocks",
    "check",
    "fingerprint",
    "first",
    "freeze",
    "freeze_rows",
    "frost_line",
    "glob",
    "guard",
    "kind",
    "last",
    "load_optimizer_state",
    "load_trained",
    "optimizer",
    "optimizer_state",
    "regex",
    "replay",
    "resume_freeze",
    "save_trained",
    "schedules",
    "select",
    "sync",
    "unfreeze",
    "where",
]

_HOMES = {
    "frostline.check": ("Finding", "check"),
    "frostline.checkpoint": ("Delta", "load_trained", "save_trained"),
    "frostline.freezer": ("Event", "Freezer"),
    "frostline.freezing": (
        "Frozen",
        "FrozenRows",
        "Plan",
        "Rule",
        "freeze",
        "freeze_rows",
        "resume_freeze",
        "unfreeze",
    ),
    "frostline.guard": ("Guard", "GuardReport", "guard"),
    "frostline.optim": (
        "ResumeReport",
        "SyncReport",
        "load_optimizer_state",
        "optimizer",
        "optimizer_state",
        "sync",
    ),
    "frostline.proof": ("fingerprint",),
    "frostline.replay": (
        "FrostLine",
        "HomeSampler",
        "Replay",
        "ReplayStats",
        "Replayer",
        "frost_line",
        "replay",
    ),
    "frostline.replay.limits": ("ReplayWarning",),
    "frostline.selection.blocks": ("Blocks", "blocks"),
    "frostline.selection": (
        "Selection",
        "before",
        "first",
        "glob",
        "kind",
        "last",
        "regex",
        "select",
        "where",
    ),
}
_FOLDERS = ("schedules",)
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

# Hidden from type checkers: they would take any misspelt attribute for one that exists.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in _FOLDERS:
            return import_module(f"frostline.{name}")
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOME_OF[name]), name)
        globals()[name] = value  # the next access does not come here
        return value

    class _Package(ModuleType):
        """Python binds an imported folder to its name; ``fl.check`` stays the function."""

        def __setattr__(self, name: str, value: object) -> None:
            if not (isinstance(value, ModuleType) and name in _HOME_OF):
                super().__setattr__(name, value)

    sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
