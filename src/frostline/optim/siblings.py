"""Where a parameter belongs whose group nobody declared: with its nearest sibling."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Place(NamedTuple):
    """A parameter and the group that it is in.

    Attributes:
        name: canonical name.
        ndim: number of dimensions.
        position: rank in definition order.
        group: index of its group.
    """

    name: str
    ndim: int
    position: int
    group: int


class Siblings:
    """Finds the group of the parameter that is most like a newcomer.

    Groups are usually divided either by kind (weights decay, biases and norms don't) or by layer
    (each has its learning rate). If no kind is in two groups, the kind decides. Otherwise it is
    the longest shared path, then the same kind, then the distance in definition order.

    >>> held = [Place("b.weight", 2, 2, 0), Place("b.bias", 1, 3, 1)]
    >>> Siblings(held).group_for(Place("a.bias", 1, 1, -1))
    1
    """

    def __init__(self, places: Iterable[Place]) -> None:
        # (path, kind) → [(position, group)]; under the kind None all of that path.
        self._near: dict[tuple[str, tuple[str, bool] | None], list[tuple[int, int]]] = {}
        groups_of_kind: dict[tuple[str, bool], set[int]] = {}
        for place in sorted(places, key=lambda place: place.position):
            groups_of_kind.setdefault(_kind(place), set()).add(place.group)
            for path in _paths(place.name):
                for kind in (_kind(place), None):
                    self._near.setdefault((path, kind), []).append((place.position, place.group))
        by_kind = all(len(groups) == 1 for groups in groups_of_kind.values())
        self._group_of_kind = (
            {kind: min(groups) for kind, groups in groups_of_kind.items()} if by_kind else {}
        )

    def __bool__(self) -> bool:
        return bool(self._near)

    def group_for(self, newcomer: Place) -> int:
        """The group that the newcomer should join; there must be at least one place."""
        kind = _kind(newcomer)
        if kind in self._group_of_kind:
            return self._group_of_kind[kind]
        near = next(
            self._near[key]
            for path in _paths(newcomer.name)
            for key in ((path, kind), (path, None))
            if key in self._near
        )
        above = bisect_left(near, (newcomer.position, -1))
        around = near[max(above - 1, 0) : above + 1]
        return min(around, key=lambda held: abs(held[0] - newcomer.position))[1]


def _kind(place: Place) -> tuple[str, bool]:
    return place.name.rpartition(".")[2], place.ndim > 1


def _paths(name: str) -> Iterator[str]:
    """The modules that a parameter lies in, the innermost first, "" for the model last."""
    while name:
        name = name.rpartition(".")[0]
        yield name
