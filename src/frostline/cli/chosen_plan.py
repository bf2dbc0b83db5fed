"""The plan that ``--freeze``, ``--train`` or ``--plan`` stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from frostline.errors import ConfigError

if TYPE_CHECKING:
    from frostline.freezing import Plan


def chosen_plan(
    freeze: list[str] | None, train: list[str] | None, path: Path | None
) -> Plan | None:
    """One plan for the options of a command; None if none was given.

    Raises:
        ConfigError: more than one of the three was given.
        SelectorError: a selector is malformed.
        PlanError: the file can't be read.

    >>> print(chosen_plan(None, ["head"], None))
    freeze: **; train: head
    """
    given = [n for n, v in (("--freeze", freeze), ("--train", train), ("--plan", path)) if v]
    if not given:
        return None
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} can't go together: give one of them")
    from frostline.freezing import Plan, Rule

    if path:
        return Plan.load(path)
    rules = [Rule(action="freeze", select=selector) for selector in freeze or ["**"]]
    return Plan(
        rules=[*rules, *(Rule(action="train", select=selector) for selector in train or [])]
    )
