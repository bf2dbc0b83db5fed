"""Selecting by a count from either end: blocks, layers, a share of the scalars."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from frostline.errors import SelectorError
from frostline.naming import Inventory
from frostline.selection.blocks import blocks_in
from frostline.selection.patterns import Matches, match_aliases
from frostline.selection.suggest import nearest


@dataclass(frozen=True)
class Counted:
    """The first or last blocks of a model, or layers of it, or all of them.

    Attributes:
        what: ``blocks`` alone, or ``layers``: the stem, each block with what follows it, the head;
            an empty stem or head is no layer.
        end: which end the count begins at, or ``all``.
        count: how many; 0 with ``all``.
        child: of blocks, the direct child that is meant ("" for all of the block).
    """

    what: Literal["blocks", "layers"]
    end: Literal["first", "last", "all"]
    count: int = 0
    child: str = ""

    def find(self, inventory: Inventory) -> Matches:
        """Groups that lie there; raises SelectorError if there are too few, or no such child."""
        found = blocks_in(inventory)
        rows = [(n,) for n in found] if self.what == "blocks" else list(filter(None, found.layers))
        if self.count > len(rows):
            raise SelectorError(
                f"selector {self.plain()!r} asks for {self.count} of the {len(rows)}"
                f" {self.what} that the model has ({found.found})"
            )
        chosen = rows if self.end == "all" else rows[: self.count]
        if self.end == "last":
            chosen = rows[-self.count :]
        parts = [name for row in chosen for name in row]
        if not self.child:
            return _below(inventory, parts)
        matches = _below(inventory, (f"{part}.{self.child}" for part in parts))
        if not matches:
            children = {
                alias.name[len(part) + 1 :].partition(".")[0]
                for group in inventory.groups
                for alias in group.aliases
                for part in parts
                if alias.name.startswith(f"{part}.")
            }
            raise SelectorError(
                f"selector {self.plain()!r}: the blocks have no child {self.child!r}."
                + nearest(self.child, sorted(children))
            )
        return matches

    def plain(self) -> str:
        """The selector as it is written in YAML and on the command line."""
        counted = self.end if self.end == "all" else f"{self.end}:{self.count}"
        return f"{self.what}:{counted}" + (f":{self.child}" if self.child else "")


@dataclass(frozen=True)
class Lowest:
    """The parameters that come first, as long as they hold at most a share of all scalars."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SelectorError(
                f"selector {self.plain()!r}: expected a share above 0 and at most 1,"
                f" got {self.share}"
            )

    def find(self, inventory: Inventory) -> Matches:
        """Groups from the first on; raises SelectorError if the first alone is beyond the share."""
        numels = [group.numel for group in inventory.groups]
        budget = int(sum(numels) * self.share)
        taken: Matches = {}
        for index, (group, numel) in enumerate(zip(inventory.groups, numels, strict=True)):
            budget -= numel
            if budget < 0:
                break
            taken[index] = frozenset(alias.position for alias in group.aliases)
        if not taken and numels:
            raise SelectorError(
                f"selector {self.plain()!r} matches nothing: the first parameter alone,"
                f" {inventory.groups[0].name}, holds {numels[0] / sum(numels):.1%} of the scalars"
            )
        return taken

    def plain(self) -> str:
        """The selector as it is written in YAML and on the command line."""
        return f"lowest:{self.share!r}"


def parse_counted(text: str) -> Counted | Lowest | None:
    """Read ``blocks:last:2``, ``blocks:all:mlp``, ``layers:first:3`` or ``lowest:0.5``.

    None if the text begins otherwise; raises SelectorError if it is malformed.

    >>> parse_counted("blocks:last:2:mlp")
    Counted(what='blocks', end='last', count=2, child='mlp')
    """
    scheme, _, rest = text.partition(":")
    if scheme == "lowest":
        try:
            return Lowest(float(rest))
        except ValueError as error:
            if isinstance(error, SelectorError):
                raise
            raise SelectorError(
                f"selector {text!r}: expected a share, as in 'lowest:0.5', got {rest!r}"
            ) from error
    if scheme not in ("blocks", "layers"):
        return None
    what: Literal["blocks", "layers"] = "blocks" if scheme == "blocks" else "layers"
    end, _, tail = rest.partition(":")
    if end == "all" and what == "blocks":
        return Counted(what, "all", 0, tail)
    count, _, child = tail.partition(":")
    if end not in ("first", "last") or not count.isdigit() or int(count) < 1:
        raise SelectorError(
            f"selector {text!r}: expected a count of 1 or more from one end, as in"
            f" '{what}:first:2' or '{what}:last:2'"
        )
    if child and what == "layers":
        raise SelectorError(f"selector {text!r}: only blocks have children; write 'blocks:…'")
    return Counted(what, "first" if end == "first" else "last", int(count), child)


def _below(inventory: Inventory, names: Iterable[str]) -> Matches:
    prefixes = tuple(f"{name}." for name in names)
    return match_aliases(inventory, lambda alias: f"{alias.name}.".startswith(prefixes))
