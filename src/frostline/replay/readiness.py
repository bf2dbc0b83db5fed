"""Which fields of which batches need not be loaded."""

from __future__ import annotations

from frostline.replay.audits import Audits
from frostline.replay.kinds import Kind


class Readiness:
    """Knows which kinds of pass a loop makes on a batch, and what each needs of it.

    Args:
        audits: says which batches are loaded all the same, to be compared.

    Attributes:
        is_off: whether all is to be loaded from now on.
        is_confirmed: whether a batch that was loaded again was the same as before.
    """

    def __init__(self, audits: Audits) -> None:
        self.is_off = False
        self.is_confirmed = False
        self._audits = audits
        self._kinds: list[Kind] = []
        self._now: list[Kind] = []
        self._asked = 0
        self._to_audit: set[tuple[int, ...]] = set()

    @property
    def unneeded_fields(self) -> frozenset[str]:
        """Paths of the fields that only replayed calls would use."""
        if any(kind.plan is None for kind in self._kinds):
            return frozenset()
        paths = {path for kind in self._kinds for path in kind.paths.values()}
        return frozenset(paths.difference(*(kind.needed_paths() for kind in self._kinds)))

    def is_ready(self, ids: tuple[int, ...]) -> bool:
        """Whether a batch of the usual size can be replayed without its unneeded fields."""
        are_known = bool(self._kinds) and all(
            kind.plan is not None
            and kind.plan.proofs > 0
            and all(name in kind.remembered for name in ids)
            for kind in self._kinds
        )
        if self.is_off or not are_known:
            return False
        self._asked += 1
        # Until one batch has been loaded again and was the same, none is skipped.
        if not self.is_confirmed or self._audits.is_due(self._asked):
            self._to_audit.add(ids)
            return False
        return True

    def is_to_be_audited(self, ids: tuple[int, ...]) -> bool:
        """Whether a batch was loaded to be compared; it is asked for once."""
        is_wanted = ids in self._to_audit
        self._to_audit.discard(ids)
        return is_wanted

    def note(self, kind: Kind) -> None:
        """The loop makes this kind of pass on the batch."""
        if kind not in self._now:
            self._now.append(kind)

    def end_batch(self, *, is_usual: bool) -> None:
        """The batch is over; one of an unusual size tells nothing of the others."""
        if self._now and is_usual:
            self._kinds = self._now
        self._now = []

    def forget(self) -> None:
        """Other cuts are going to be made."""
        self._kinds, self._now = [], []
