"""All rules, by code."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from types import MappingProxyType

from frostline.check import (
    distributed,
    modes,
    optimizer,
    plans,
    probed,
    savings,
    scheduler,
    structure,
    values,
)
from frostline.check.finding import Rule

_FAMILIES = (values, modes, probed, optimizer, scheduler, structure, plans, savings, distributed)

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        found.code: found
        for found in sorted(
            chain.from_iterable(family.RULES for family in _FAMILIES), key=lambda found: found.code
        )
    }
)
"""Code → rule, in the order of the codes. A new rule joins its family's ``RULES``."""
