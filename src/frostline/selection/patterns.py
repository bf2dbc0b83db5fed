"""Matching parameters by name: whole components, globs, regular expressions.

Each pattern is a small immutable object with ``find(inventory)``; what it finds is a mapping from
the index of a tensor group to the positions of the aliases that matched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from frostline.errors import SelectorError
from frostline.naming import Alias, Inventory

Matches = dict[int, frozenset[int]]
"""Group index → positions of the aliases by which the group was matched."""

GLOB_CHARACTERS = frozenset("*?[")


def match_aliases(inventory: Inventory, accepts: Callable[[Alias], bool]) -> Matches:
    """The groups of which at least one alias is accepted: every alias of a tied tensor counts."""
    found: Matches = {}
    for index, group in enumerate(inventory.groups):
        positions = [alias.position for alias in group.aliases if accepts(alias)]
        if positions:
            found[index] = frozenset(positions)
    return found


@dataclass(frozen=True)
class Dotted:
    """Whole components, anywhere in the name: ``fc1`` is in ``a.fc1.bias``, not ``fc10.bias``."""

    name: str

    def __post_init__(self) -> None:
        if not all(self.name.split(".")):
            raise SelectorError(
                f"selector {self.name!r} has an empty component: write whole names joined by single"
                " dots, such as 'encoder.layer.1'"
            )

    def find(self, inventory: Inventory) -> Matches:
        """Groups with an alias that holds these components in a row."""
        needle = f".{self.name}."
        return match_aliases(inventory, lambda alias: needle in f".{alias.name}.")

    def plain(self) -> str:
        """The selector as it is written in YAML and on the command line."""
        return self.name


@dataclass(frozen=True)
class Glob:
    """A glob over the whole name: ``*`` stays inside a component, ``**`` crosses them."""

    pattern: str

    def __post_init__(self) -> None:
        glob_to_regex(self.pattern)

    def find(self, inventory: Inventory) -> Matches:
        """Groups with an alias that the pattern matches from end to end."""
        fullmatch = re.compile(glob_to_regex(self.pattern)).fullmatch
        return match_aliases(inventory, lambda alias: fullmatch(alias.name) is not None)

    def plain(self) -> str:
        """As written; without a wildcard it would read as a dotted name, so as an exact regex."""
        if GLOB_CHARACTERS & set(self.pattern):
            return self.pattern
        return f"re:^{re.escape(self.pattern)}$"


@dataclass(frozen=True)
class Regex:
    """A regular expression that is searched for in the name."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise SelectorError(
                f"selector 're:{self.pattern}' is not a regular expression: {error}"
            ) from error

    def find(self, inventory: Inventory) -> Matches:
        """Groups with an alias in which the expression is found."""
        search = re.compile(self.pattern).search
        return match_aliases(inventory, lambda alias: search(alias.name) is not None)

    def plain(self) -> str:
        """The selector as it is written in YAML and on the command line."""
        return f"re:{self.pattern}"


def glob_to_regex(pattern: str) -> str:
    """Translate a glob over dotted names; raises SelectorError for an unclosed bracket.

    ``**.`` stands for any number of leading components, none included; ``.**`` at the end for
    one or more.

    >>> import re
    >>> re.fullmatch(glob_to_regex("layers.[0-3].**"), "layers.2.mlp.weight") is not None
    True
    """
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        starts_component = at == 0 or pattern[at - 1] == "."
        if pattern.startswith("**.", at) and starts_component:
            parts.append(r"(?:[^.]+\.)*")
            at += 3
        elif pattern.startswith("**", at):
            parts.append(".+" if starts_component else ".*")
            at += 2
        elif pattern[at] == "*":
            parts.append("[^.]*")
            at += 1
        elif pattern[at] == "?":
            parts.append("[^.]")
            at += 1
        elif pattern[at] == "[":
            at, bracket = _bracket(pattern, at)
            parts.append(bracket)
        else:
            parts.append(re.escape(pattern[at]))
            at += 1
    return "".join(parts)


def _bracket(pattern: str, start: int) -> tuple[int, str]:
    """The end of the ``[...]`` that opens at ``start``, and the class as a regex."""
    negated = pattern[start + 1 : start + 2] in ("!", "^")
    first = start + 1 + negated
    # As in a shell, a bracket right after the opening is a member of the class.
    end = pattern.find("]", first + 1)
    if end < 0:
        raise SelectorError(f"glob {pattern!r} opens a '[' that nothing closes: add ']'")
    members = re.sub(r"([\\^\[\]&~|])", r"\\\1", pattern[first:end])
    bracket = f"[^.{members}]" if negated else f"[{members}]"
    try:
        re.compile(bracket)
    except re.error as error:
        raise SelectorError(
            f"glob {pattern!r}: bad class '[{pattern[first:end]}]': {error}"
        ) from error
    return end + 1, bracket
