"""Evidence: tensors as they were when they were frozen, kept to be compared later."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from frostline.errors import FrozenChangedError
from frostline.naming import Alias, tensor_bytes, walk_modules
from frostline.proof.causes import Suspect, likely_cause
from frostline.proof.changes import Change, Proof, describe
from frostline.proof.fingerprint import whole_fingerprint
from frostline.proof.offloaded import content_of
from frostline.proof.reference import Reference, movement, shape_of, take_references
from frostline.shards import is_spread, local_part, present, team_of, whole


class Witnessed(NamedTuple):
    """A frozen tensor: where it hangs and what it held."""

    alias: Alias
    reference: Reference

    @property
    def kind(self) -> Literal["parameter", "buffer"]:
        """``parameter`` or ``buffer``."""
        return "parameter" if isinstance(self.alias.tensor, nn.Parameter) else "buffer"

    @property
    def key(self) -> str:
        """Attribute name in the owning module."""
        return self.alias.name.rpartition(".")[2]

    def now(self) -> Tensor | None:
        """The tensor that is found there at this moment."""
        owner = self.alias.owner
        held = owner._parameters if self.kind == "parameter" else owner._buffers
        found = present(self.alias.tensor, held.get(self.key))
        return None if found is None else content_of(owner, self.key, found)


class Evidence:
    """What a set of frozen tensors held; it can shrink, grow, and be compared with the present.

    Args:
        root: the model; a module that no longer hangs in it has not stayed what it was.

    >>> from torch import nn
    >>> from frostline.naming import take_inventory
    >>> layer = nn.Linear(2, 2)
    >>> evidence = Evidence()
    >>> evidence.cover(group.aliases[0] for group in take_inventory(layer).groups)
    >>> evidence.verify().tensors
    2
    """

    def __init__(self, root: nn.Module | None = None) -> None:
        self._root = root
        self._witnessed: dict[str, Witnessed] = {}

    def __len__(self) -> int:
        return len(self._witnessed)

    def names(self, kind: Literal["parameter", "buffer"]) -> tuple[str, ...]:
        """Names of the tensors of one kind that are covered."""
        return tuple(name for name, entry in self._witnessed.items() if entry.kind == kind)

    def forget(self, names: Iterable[str]) -> None:
        """Cover these no more; what they held is recorded anew if they are covered again."""
        for name in names:
            self._witnessed.pop(name, None)

    def cover(self, aliases: Iterable[Alias]) -> None:
        """Cover exactly these tensors: forget others, keep what is known, record what is new."""
        wanted = {alias.name: alias for alias in aliases}
        if wanted.keys() == self._witnessed.keys():
            return
        new = [alias for name, alias in wanted.items() if name not in self._witnessed]
        with torch.no_grad():
            references = take_references([_content(alias) for alias in new])
        recorded = {
            alias.name: Witnessed(alias=alias, reference=reference)
            for alias, reference in zip(new, references, strict=True)
        }
        self._witnessed = {name: recorded.get(name) or self._witnessed[name] for name in wanted}

    def fingerprints(self) -> dict[str, str]:
        """Name → fingerprint of what is there now, to be kept across processes.

        Of a tensor that is spread over ranks, that of the whole: all ranks call this together.
        """
        found = {name: entry.now() for name, entry in self._witnessed.items()}
        return {name: whole_fingerprint(held) for name, held in found.items() if held is not None}

    def follow(self, shards: Mapping[int, Tensor]) -> None:
        """Go over from tensors to their shards, if those hold what the tensors held.

        Each is gathered once, by all ranks together. One that holds something else is left with
        what it held before, and the next proof names it.

        Args:
            shards: identity of a tensor → what hangs in its place.
        """
        for name, entry in self._witnessed.items():
            shard = shards.get(id(entry.alias.tensor))
            if shard is not None and movement(entry.reference, whole(shard)) is None:
                alias = entry.alias._replace(tensor=shard)
                (reference,) = take_references([shard])
                self._witnessed[name] = Witnessed(alias=alias, reference=reference)

    def changes(self) -> list[Change]:
        """The covered tensors that are not bitwise what they were, in the model's order."""
        with torch.no_grad():
            places = None if self._root is None else _places(self._root)
            found = (change_in(entry, places) for entry in self._witnessed.values())
            return [change for change in found if change is not None]

    def verify(self) -> Proof:
        """Compare every tensor; raises FrozenChangedError that names each one that moved.

        Where tensors are spread over ranks each rank compares its part, and all of them come to
        one verdict: they call this together.
        """
        start = time.perf_counter()
        entries = self._witnessed
        team = team_of(entry.alias.tensor for entry in entries.values())
        changes = self.changes()
        if team is not None:
            found = team.share(changes) if team.any(bool(changes)) else []
            changes = _one_verdict(found, {n: e.alias.tensor for n, e in entries.items()})
        if changes:
            raise FrozenChangedError(describe(changes, len(self)), changes)
        return Proof(
            parameters=len(self.names("parameter")),
            buffers=len(self.names("buffer")),
            bytes=sum(tensor_bytes(entry.alias.tensor) for entry in self._witnessed.values()),
            seconds=time.perf_counter() - start,
        )


Places = frozenset[tuple[str, int]]
"""Where modules hang in a model: canonical name and identity of each."""


def change_in(entry: Witnessed, places: Places | None = None) -> Change | None:
    """How a tensor differs from what it was, and the likely cause; None if it does not.

    With ``places``, a tensor whose module hangs there no more counts as gone.
    """
    alias = entry.alias
    hangs = places is None or (alias.owner_name, id(alias.owner)) in places
    now = entry.now() if hangs else None
    moved = None if now is None else movement(entry.reference, now)
    if now is not None and moved is None:
        return None
    entirely = moved is not None and moved.compared == entry.reference.elements
    partly = moved is not None and moved.compared > 0 and not entirely
    return Change(
        name=entry.alias.name,
        kind=entry.kind,
        elements=entry.reference.elements,
        moved=moved.moved if moved and entirely else None,
        max_abs=moved.max_abs if moved else float("nan"),
        sampled=(moved.compared, moved.moved) if moved and partly else None,
        cause=_cause(entry, now),
    )


def _content(alias: Alias) -> Tensor:
    return content_of(alias.owner, alias.name.rpartition(".")[2], alias.tensor)


def _one_verdict(found: Sequence[list[Change]], tensors: Mapping[str, Tensor]) -> list[Change]:
    """What all ranks found, as one list in the model's order, each tensor once."""
    by_name: dict[str, list[tuple[int, Change]]] = {}
    for rank, changes in enumerate(found):
        for change in changes:
            by_name.setdefault(change.name, []).append((rank, change))
    return [_joined(tensors[name], by_name[name]) for name in tensors if name in by_name]


def _joined(tensor: Tensor, parts: list[tuple[int, Change]]) -> Change:
    """One change of the changes of a tensor's parts, and the ranks on which they lie."""
    changes = [change for _, change in parts]
    ranks = ", ".join(str(rank) for rank, _ in parts)
    cause = f"{changes[0].cause} (found on rank {ranks})"
    unknown = any(change.moved is None for change in changes)
    if unknown or not is_spread(tensor):  # a buffer that every rank has to itself
        return replace(changes[0], cause=cause)
    return replace(
        changes[0],
        elements=tensor.numel(),
        moved=sum(change.moved or 0 for change in changes),
        max_abs=max(change.max_abs for change in changes),
        cause=cause,
    )


def _cause(entry: Witnessed, now: Tensor | None) -> str:
    was = entry.reference
    if now is not None and was.dtype != now.dtype:
        return f"it was converted from {was.dtype} to {now.dtype}: convert first, then freeze"
    if now is entry.alias.tensor and was.shape != shape_of(local_part(now)):
        return (
            "it was cut to another shape, as FullyShardedDataParallel does: wrap first, then freeze"
        )
    suspect = Suspect(key=entry.key, owner=entry.alias.owner, was=entry.alias.tensor, now=now)
    return likely_cause(suspect)


def _places(root: nn.Module) -> Places:
    return frozenset((name, id(module)) for name, module in walk_modules(root))
