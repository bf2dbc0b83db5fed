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

from importlib import import_module
from typing import TYPE_CHECKING

from frostline.errors import (
    ConfigError,
    FrostlineError,
    FrozenChangedError,
    MeasureError,
    ModelSourceError,
    OptimizerError,
    OutputError,
    PlanError,
    SelectorError,
    TransitionError,
)

if TYPE_CHECKING:
    from frostline.freezing import Frozen, Plan, Rule, freeze, unfreeze
    from frostline.optim import optimizer
    from frostline.proof import fingerprint
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

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "FrostlineError",
    "Frozen",
    "FrozenChangedError",
    "MeasureError",
    "ModelSourceError",
    "OptimizerError",
    "OutputError",
    "Plan",
    "PlanError",
    "Rule",
    "Selection",
    "SelectorError",
    "TransitionError",
    "__version__",
    "before",
    "fingerprint",
    "first",
    "freeze",
    "glob",
    "kind",
    "last",
    "optimizer",
    "regex",
    "select",
    "unfreeze",
    "where",
]

_HOMES = {
    "frostline.freezing": ("Frozen", "Plan", "Rule", "freeze", "unfreeze"),
    "frostline.optim": ("optimizer",),
    "frostline.proof": ("fingerprint",),
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
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

# Hidden from type checkers: they would take any misspelt attribute for one that exists.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOME_OF[name]), name)
        globals()[name] = value  # the next access does not come here
        return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
