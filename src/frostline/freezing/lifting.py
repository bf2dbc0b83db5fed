"""A thaw of a whole tensor lifts the hold on its rows, and its undo puts it down again."""

from __future__ import annotations

from collections.abc import Iterable

from frostline.freezing.row_hold import RowHold, row_holds
from frostline.naming import TensorGroup


class Lifted:
    """The rows that one thaw lifted."""

    def __init__(self, holds: Iterable[RowHold]) -> None:
        # Modules that share a tensor share what is kept of it.
        self._holds = list({id(hold.kept): hold for hold in holds}.values())
        for hold in self._holds:
            hold.kept.lifted += 1

    def put_down(self) -> None:
        """Hold the rows again, at the values that they have by now."""
        for hold in self._holds:
            hold.kept.lifted -= 1
            if not hold.kept.lifted and hold.parameter is not None:
                hold.kept.note(hold.parameter)


def lift_rows(groups: Iterable[TensorGroup]) -> Lifted:
    """Let every frozen row of these tensors train."""
    return Lifted(
        hold
        for group in groups
        for alias in group.aliases
        for hold in row_holds(alias.owner, alias.name.rpartition(".")[2])
    )
