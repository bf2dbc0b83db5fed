"""Plain attributes that a model's own passes set: once, as they cache something, or every time."""

from __future__ import annotations

from collections import Counter

from frostline.replay.kinds import Kind, refuse_counting
from frostline.replay.watch import Mark, State, Watch, changed_settings


class OwnChanges:
    """Tells settings that a pass makes by itself from those that somebody else changes.

    Args:
        watch: is told which settings do not tell kinds of pass apart.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._counts: Counter[tuple[int, str]] = Counter()

    def note(self, kind: Kind, before: State, after: State) -> tuple[bool, bool]:
        """Look at what one pass changed.

        Returns:
            Whether the next pass is of the same kind, as far as these changes go; and whether
            the kind has to be cut anew, since a planned call would no longer make its changes.
        """
        is_alike, is_refused = True, False
        for setting in changed_settings(before, after):
            name = setting.owner, setting.name
            self._counts[name] += 1
            if self._counts[name] == 1:
                # A tensor that is there from now on may be used: the next pass is looked at again.
                is_alike &= not isinstance(setting.value, Mark)
            elif refuse_counting(kind, setting):
                is_refused = True
            else:
                self._watch.ignore(setting)
        return is_alike, is_refused
