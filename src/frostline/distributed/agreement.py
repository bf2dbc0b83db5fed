"""Ranks compare what they are about to do, in one small collective, before they do it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from frostline.distributed.odds import Word, say_odds
from frostline.errors import FrostlineError, TransitionError

# A process group → ranks of it → their agreement. It goes when the process group goes.
_standing: WeakKeyDictionary[ProcessGroup, dict[tuple[int, ...], Agreement]] = WeakKeyDictionary()


def agreement_among(ranks: Sequence[int] | None = None) -> Agreement:
    """The agreement of these ranks: one for all who ask, as long as the process group lives.

    Args:
        ranks: the ranks, as numbered in the whole world, which ask for it alike; None: all.
    """
    world = distributed.group.WORLD
    assert world is not None
    found = _standing.setdefault(world, {})
    key = tuple(ranks if ranks is not None else range(distributed.get_world_size()))
    if key not in found:
        found[key] = Agreement(ranks)
    return found[key]


class Agreement:
    """Some processes that have to do the same thing at the same moment, or nothing.

    It talks over a group of its own. A rank that waits here while another is in the middle of a
    gradient reduction then runs into the timeout and says so, where in one group the two calls
    would take each other's messages. The group is on the CPU, where gloo is to be had, so that
    nobody waits for a device. Made on all its ranks alike, by :func:`agreement_among`.

    Args:
        ranks: the ranks, as numbered in the whole world; None: all.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> agreement_among().reach("a freeze at step 3", {"what is to train": ["head"]}, numbers=[0.5])
    [0.5]
    >>> dist.destroy_process_group()
    """

    def __init__(self, ranks: Sequence[int] | None = None) -> None:
        self._group = _own_group(ranks)
        self._ranks = distributed.get_process_group_ranks(self._group)
        self._device = _device_of(self._group)
        self._seen = 0
        self._sign("the start")

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self._ranks)

    def reach(
        self,
        moment: str,
        facts: Mapping[str, object],
        *,
        numbers: Sequence[float] = (),
        check: Callable[[], object] | None = None,
    ) -> list[float]:
        """Go on together, or raise the same on all ranks.

        One collective of 32 bytes a rank; a second one if there are numbers to hand out, or odds
        to name.

        Args:
            moment: what is about to happen, for the message.
            facts: what has to be the same on all ranks, by name; plain JSON values.
            numbers: numbers that may differ; equally many on each rank if the facts are the same.
            check: what may refuse; if it does so on one rank, no rank goes on.

        Returns:
            The first rank's numbers, on all ranks.

        Raises:
            TransitionError: (a RuntimeError) the ranks are at odds, one of them refuses, or one
                did not come here within the process group's timeout. The message names it.
            FrostlineError: what ``check`` raised, if it raised the same everywhere.
        """
        refusal = _refusal(check)
        word: Word = {
            "moment": moment,
            "facts": dict(facts),
            "refusal": str(refusal) if refusal is not None else None,
        }
        words: list[Any] = [None] * self.size
        self._seen += 1
        try:
            self._sign(moment)
            if agreed := self._is_same(word):
                first = self._first(numbers) if refusal is None else []
            else:
                distributed.all_gather_object(words, word, group=self._group)
        except RuntimeError as error:  # gloo, NCCL and the store raise nothing more special
            raise TransitionError(self._say_alone(moment)) from error
        if refusal is not None and agreed:
            raise refusal
        if agreed:
            return first
        raise TransitionError(say_odds(dict(zip(self._ranks, words, strict=True))))

    def _is_same(self, word: Word) -> bool:
        """Whether all ranks say this; told by a digest, the same size whatever is said."""
        if self.size == 1:
            return True
        written = json.dumps(word, sort_keys=True).encode()
        digest = bytearray(hashlib.sha256(written).digest())
        mine = torch.frombuffer(digest, dtype=torch.uint8).to(self._device)
        theirs = [torch.empty_like(mine) for _ in self._ranks]
        distributed.all_gather(theirs, mine, group=self._group)
        return all(torch.equal(mine, one) for one in theirs)

    def _first(self, numbers: Sequence[float]) -> list[float]:
        """The first rank's numbers."""
        if self.size == 1 or not numbers:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        distributed.broadcast(values, src=self._ranks[0], group=self._group)
        return [float(value) for value in values]

    def _sign(self, moment: str) -> None:
        """Leave word of where this rank is, to be read if the others wait for it in vain."""
        if self.size > 1:
            _store().set(self._key(distributed.get_rank()), json.dumps([self._seen, moment]))

    def _say_alone(self, moment: str) -> str:
        missing = []
        for rank in self._ranks:
            seen, where = self._last_seen(rank)
            if seen < self._seen:
                missing.append(f"rank {rank} (last seen at {where})")
        who = ", ".join(missing) or "another rank, which was here and is gone,"
        return (
            f"{moment}: {who} did not come here while the others waited. It was stopped, or it is"
            " still training: then its data has other batches. Give all ranks equally many steps"
            " (drop_last=True, DistributedSampler), and look for that rank's own error"
        )

    def _last_seen(self, rank: int) -> tuple[int, str]:
        try:
            seen, where = json.loads(_store().get(self._key(rank)))
        except (RuntimeError, ValueError):  # the store was on the rank that is gone
            return 0, "an unknown place"
        return int(seen), str(where)

    def _key(self, rank: int) -> str:
        return f"frostline/{self._group.group_name}/{rank}"


def _refusal(check: Callable[[], object] | None) -> FrostlineError | None:
    try:
        if check is not None:
            check()
    except FrostlineError as error:
        return error
    return None


def _own_group(ranks: Sequence[int] | None) -> ProcessGroup:
    backend = "gloo" if distributed.is_gloo_available() else None
    world = distributed.group.WORLD
    assert world is not None
    group: ProcessGroup = distributed.new_group(
        ranks,
        backend=backend,
        timeout=_timeout_of(world),
        use_local_synchronization=ranks is not None,
    )
    return group


def _device_of(group: ProcessGroup) -> torch.device:
    """A device that the group can send from."""
    if distributed.get_backend(group) == "gloo":
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator() or "cpu")


def _timeout_of(group: ProcessGroup) -> timedelta | None:
    """What the user gave to ``init_process_group``: a new group would not inherit it."""
    for device in ("cpu", "cuda"):
        try:
            found: timedelta = group._get_backend(torch.device(device)).options._timeout
        except (AttributeError, RuntimeError):  # no backend for this device, or without options
            continue
        return found
    return None


def _store() -> Any:
    """Where the processes found each other; it outlives a failed collective."""
    return distributed.distributed_c10d._get_default_store()
