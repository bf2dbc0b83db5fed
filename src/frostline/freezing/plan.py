"""Plans: an ordered list of rules, the last match wins, in one small YAML file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from frostline.documents import parse_yaml, read_text
from frostline.errors import PlanError, SelectorError
from frostline.files import write_atomically
from frostline.freezing.foreign import FOREIGN_KEYS, foreign_rules
from frostline.selection import Selector, SelectorLike, as_selector, from_plain
from frostline.selection.suggest import nearest

Action = Literal["freeze", "train"]

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a plan.

    Attributes:
        action: ``freeze`` or ``train``.
        select: the parameters that it is about; a string is read as a selector.
    """

    action: Action
    select: Selector

    def __init__(self, *, action: Action, select: SelectorLike) -> None:
        if action not in get_args(Action):
            raise PlanError(f"a rule says 'freeze' or 'train', got {action!r}")
        object.__setattr__(self, "action", action)
        object.__setattr__(self, "select", as_selector(select))

    def __str__(self) -> str:
        return f"{self.action}: {self.select}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which parameters to freeze and which to train: ordered rules, the last match wins.

    What no rule matches keeps the state that it has. Immutable; equal plans have equal rules.

    Attributes:
        rules: the rules, in order.

    >>> plan = Plan(rules=[Rule(action="freeze", select="**"), Rule(action="train", select="head")])
    >>> print(plan.to_yaml())
    frostline: 1
    rules:
    - freeze: '**'
    - train: head
    <BLANKLINE>
    >>> Plan.parse(plan.to_yaml()) == plan
    True
    """

    rules: tuple[Rule, ...]

    def __init__(self, *, rules: Iterable[Rule]) -> None:
        object.__setattr__(self, "rules", tuple(rules))
        if not self.rules:
            raise PlanError("a plan needs at least one rule, such as 'freeze: backbone'")

    @staticmethod
    def freezing(what: SelectorLike) -> Plan:
        """Freeze what the selector matches; leave the rest as it is."""
        return Plan(rules=[Rule(action="freeze", select=what)])

    @staticmethod
    def training(what: SelectorLike) -> Plan:
        """Train what the selector matches; leave the rest as it is."""
        return Plan(rules=[Rule(action="train", select=what)])

    @staticmethod
    def all_but(what: SelectorLike) -> Plan:
        """Freeze everything, then train what the selector matches."""
        return Plan(rules=[Rule(action="freeze", select="**"), Rule(action="train", select=what)])

    @staticmethod
    def parse(text: str, *, source: str = "plan") -> Plan:
        """Read a plan from YAML; ``source`` names it in errors. Raises PlanError.

        The freezing of Axolotl's, Spectrum's, LLaMA-Factory's and ms-swift's configurations is read
        too, and fastai's ``freeze_to: n``.

        >>> print(Plan.parse("finetuning_type: freeze"))
        freeze: **; train: blocks:last:2
        """
        document = parse_yaml(text, source=source, error=PlanError)
        if document is None:
            raise PlanError(f"{source} is empty: write 'frostline: 1' and a list of 'rules'")
        if not isinstance(document, dict):
            raise PlanError(
                f"{source}: expected the keys 'frostline' and 'rules', got {document!r:.60}"
            )
        if not {"frostline", "rules"} & set(document):
            foreign = foreign_rules(document, source=source)
            if foreign is not None:
                return Plan(rules=[Rule(action=action, select=found) for action, found in foreign])
            _refuse_unknown_keys(document, ("frostline", "rules", *FOREIGN_KEYS), source)
        _refuse_unknown_keys(document, ("frostline", "rules"), source)
        version = document.get("frostline")
        if version != _VERSION or isinstance(version, bool):
            raise PlanError(
                f"{source}: expected 'frostline: {_VERSION}' (the format's version),"
                f" got {document.get('frostline')!r}"
            )
        rules = document.get("rules")
        if not isinstance(rules, list) or not rules:
            raise PlanError(
                f"{source}: 'rules' must be a list with at least one rule, got {rules!r}"
            )
        return Plan(rules=[_rule(rule, f"{source}, rule {n}") for n, rule in enumerate(rules, 1)])

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan file; raises PlanError if it cannot be read or is no plan."""
        text = read_text(Path(path), called="the plan", error=PlanError)
        return Plan.parse(text, source=str(path))

    def plain(self) -> list[dict[str, Any]]:
        """The rules as YAML and JSON hold them; raises SelectorError as :meth:`to_yaml` does.

        >>> Plan.all_but("head").plain()
        [{'freeze': '**'}, {'train': 'head'}]
        """
        return [{rule.action: rule.select.plain()} for rule in self.rules]

    def to_yaml(self) -> str:
        """The plan as YAML; raises SelectorError if a rule selects by a function or an object."""
        return yaml.safe_dump({"frostline": _VERSION, "rules": self.plain()}, sort_keys=False)

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, whole or not at all; raises OutputError if it cannot."""
        write_atomically(Path(path), self.to_yaml().encode())

    def __str__(self) -> str:
        return "; ".join(map(str, self.rules))


def _rule(value: object, place: str) -> Rule:
    if not isinstance(value, dict) or len(value) != 1:
        raise PlanError(f"{place}: expected one 'freeze: …' or 'train: …', got {value!r}")
    _refuse_unknown_keys(value, get_args(Action), place)
    ((action, select),) = value.items()
    try:
        return Rule(action=action, select=from_plain(select))
    except SelectorError as error:
        raise PlanError(f"{place}: {error}") from error


def _refuse_unknown_keys(value: dict[object, object], known: tuple[str, ...], place: str) -> None:
    for key in value:
        if key not in known:
            raise PlanError(f"{place}: unknown key {key!r}.{nearest(str(key), known)}")
