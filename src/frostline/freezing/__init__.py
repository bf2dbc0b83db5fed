"""Make it so, and undo it exactly: freeze, unfreeze, plans, pinned modes."""

from frostline.freezing.apply import freeze, unfreeze
from frostline.freezing.frozen import Frozen
from frostline.freezing.plan import Plan, Rule

__all__ = ["Frozen", "Plan", "Rule", "freeze", "unfreeze"]
