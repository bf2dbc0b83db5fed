"""What an integration takes as a plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from frostline.errors import PlanError
from frostline.freezing import Plan
from frostline.selection import SelectorLike, where

PlanLike = Plan | SelectorLike | str | Path | Mapping[str, Any]
"""A plan; a plan file; a mapping as a plan file holds it; or a selector of what to freeze."""


def as_plan(given: PlanLike) -> Plan:
    """A plan as it is, from a file, from a mapping, or one that freezes what is selected.

    Args:
        given: a string that ends in ``.yaml`` or ``.yml``, or a ``Path``, is a file; any other
            string is a selector, as :func:`frostline.freeze` takes it.

    Raises:
        PlanError: (a ValueError) the file can't be read, or is no plan.
        SelectorError: (a ValueError) the selector is malformed.

    >>> print(as_plan("encoder"))
    freeze: encoder
    >>> print(as_plan({"frostline": 1, "rules": [{"freeze": "**"}, {"train": "head"}]}))
    freeze: **; train: head
    """
    if isinstance(given, Plan):
        return given
    if isinstance(given, Path) or (isinstance(given, str) and given.endswith((".yaml", ".yml"))):
        return Plan.load(given)
    if isinstance(given, Mapping):
        return Plan.parse(yaml.safe_dump(dict(given)), source="plan")
    return Plan.freezing(given)


def standing_plan(model: nn.Module) -> Plan:
    """A plan that freezes what is frozen already, by hand or by :func:`frostline.freeze`.

    Raises:
        PlanError: (a ValueError) nothing is.

    >>> model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    >>> import frostline as fl
    >>> fl.freeze(model, standing_plan(model)).names
    ('0.weight', '0.bias')
    """
    if all(parameter.requires_grad for parameter in model.parameters()):
        raise PlanError(
            f"nothing in {type(model).__name__} is frozen, and FrostlineCallback was given neither"
            " a plan nor a schedule: pass plan=fl.Plan.all_but('head'), or freeze the model before"
        )
    return Plan.freezing(where(lambda name, parameter: not parameter.requires_grad))
