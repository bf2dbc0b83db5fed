"""The linter: what can be seen to be wrong with a model, its optimizer and its scheduler."""

from frostline.check.finding import Finding, Rule
from frostline.check.registry import RULES
from frostline.check.run import check

__all__ = ["RULES", "Finding", "Rule", "check"]
