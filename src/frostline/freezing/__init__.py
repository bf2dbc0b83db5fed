"""Make it so, and undo it exactly: freeze, unfreeze, plans, pinned modes, rows."""

from frostline.freezing.apply import freeze, unfreeze
from frostline.freezing.frozen import Frozen
from frostline.freezing.plan import Plan, Rule
from frostline.freezing.resume import resume_freeze
from frostline.freezing.rows import FrozenRows, freeze_rows

__all__ = [
    "Frozen",
    "FrozenRows",
    "Plan",
    "Rule",
    "freeze",
    "freeze_rows",
    "resume_freeze",
    "unfreeze",
]
