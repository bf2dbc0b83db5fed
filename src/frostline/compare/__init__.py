"""How do ways of freezing differ? They are run side by side and held against the claims."""

from frostline.compare.claims import Claim, weigh
from frostline.compare.comparison import Comparison
from frostline.compare.ways import compare_ways

__all__ = ["Claim", "Comparison", "compare_ways", "weigh"]
