"""Plain attributes that a model's own passes set: once, as they cache something, or every time."""

from __future__ import annotations

from collections import Counter

from frostline.replay.kinds import Kind
from frostline.replay.watch import Mark, Setting, State, changed_settings


class OwnChanges:
    """Tells settings that a pass makes by itself from those that somebody else changes.

    A module that changes an attribute every time it runs is not left out: code outside of the
    model may look at the attribute, or the module may count on it.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, str]] = Counter()
        self._refused: set[tuple[int, str]] = set()

    def note(self, kind: Kind, before: State, after: State) -> tuple[bool, bool, list[Setting]]:
        """Look at what one pass changed.

        Returns:
            Whether the next pass is of the same kind, as far as these changes go; whether the
            kind has to be cut anew, since a planned call would no longer make its changes; and
            the settings that are settled by that, so that they need not be looked at.
        """
        is_alike = True
        settled: list[Setting] = []
        for setting in changed_settings(before, after):
            name = setting.owner, setting.name
            self._counts[name] += 1
            if self._counts[name] == 1:
                # A tensor that is there from now on may be used: the next pass is looked at again.
                is_alike &= not isinstance(setting.value, Mark)
            else:
                settled.append(setting)
                if setting.owner in _owners(kind):
                    self._refused.add(name)
        return is_alike, self.refuse_in(kind), settled

    def refuse_in(self, kind: Kind) -> bool:
        """Refuse calls of modules that change their attributes; whether that is new for a kind."""
        is_new = False
        for call in kind.graph.calls:
            names = [name for owner, name in self._refused if owner == id(call.module)]
            if names and call.effect is None:
                call.effect = f"its attribute {names[0]!r} changes every time it runs"
                is_new = True
        return is_new


def _owners(kind: Kind) -> set[int]:
    """The modules that a replay does not call."""
    modules = [] if kind.plan is None else kind.plan.modules
    return {id(below) for module in modules for below in module.modules()}
