"""What a call changed in an optimizer, as data and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frostline.units import format_names


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What :func:`frostline.sync` did, by parameter name, in definition order.

    Attributes:
        added: trains and was in no group.
        groups: for each added parameter, the label of the group that it joined.
        replaced: the optimizer held a tensor that is no longer in the model.
        dropped: left the optimizer: frozen, or no longer in the model.
        kept: trains and was there.
        declared: frozen and stays in its group, without a gradient (``declare_all``, or
            ``state="keep"``).
        foreign: number of tensors that are not this model's, left alone.

    >>> print(SyncReport(added=("a",), groups=("all",), replaced=(), dropped=("b",), kept=()))
    added 1 (a into 'all'); dropped 1 (b); kept 0
    """

    added: tuple[str, ...]
    groups: tuple[str, ...]
    replaced: tuple[str, ...]
    dropped: tuple[str, ...]
    kept: tuple[str, ...]
    declared: tuple[str, ...] = ()
    foreign: int = 0

    def __str__(self) -> str:
        by_group: dict[str, list[str]] = {}
        for name, group in zip(self.added, self.groups, strict=True):
            by_group.setdefault(group, []).append(name)
        joined = ", ".join(
            f"{format_names(names)} into '{group}'" for group, names in by_group.items()
        )
        parts = [f"added {len(self.added)} ({joined})"] if self.added else []
        for word, names in (("replaced", self.replaced), ("dropped", self.dropped)):
            if names:
                parts.append(f"{word} {len(names)} ({format_names(names)})")
        parts.append(f"kept {len(self.kept)}")
        if self.declared:
            parts.append(f"{len(self.declared)} frozen stay declared")
        if self.foreign:
            parts.append(f"{self.foreign} that are not this model's left alone")
        return "; ".join(parts)


def group_label(group: Mapping[str, Any], index: int) -> str:
    """What to call a group: its name, or its place if it has none.

    >>> group_label({"name": "layer 0"}, 3), group_label({}, 3)
    ('layer 0', 'group 3')
    """
    return str(group.get("name") or f"group {index}")
