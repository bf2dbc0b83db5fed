"""Two checkpoints side by side: what changed, and whether it was allowed to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from frostline.checkpoint.content import ContentReader
from frostline.checkpoint.listing import Listing, apply_plan, skeleton
from frostline.checkpoint.sides import Held, Side, read_side
from frostline.checkpoint.stored import StoredTensor
from frostline.freezing.plan import Plan
from frostline.selection import SelectorLike, select

Progress = Callable[[int, int], None]
"""Told how many bytes are read, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A tensor that is not the same in two checkpoints.

    Attributes:
        name: its name; the first one if it is tied.
        state: ``changed``, ``added`` (only in the tuned one) or ``missing`` (only in the base).
        frozen: whether it was to stay as it was; None if no plan says so.
        breaks: whether it breaks the plan.
        max_abs: the largest change of an element; None where that can't be told: another shape or
            dtype, or one side has a fingerprint only.
        reason: what else there is to say, such as the two shapes; may be empty.
    """

    name: str
    state: Literal["changed", "added", "missing"]
    frozen: bool | None
    breaks: bool
    max_abs: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a comparison of two checkpoints found.

    Attributes:
        base: the checkpoint before training.
        tuned: the one after.
        plan: what was to be frozen; None if nothing says so.
        same: number of tensors that are bitwise the same.
        frozen: number of tensors that were to stay as they were.
        nbytes: bytes that were read.
        differences: the tensors that differ, those that break the plan first.
    """

    base: Path
    tuned: Path
    plan: Plan | None
    same: int
    frozen: int
    nbytes: int
    differences: tuple[Difference, ...]

    @property
    def kept(self) -> bool:
        """Whether all that was to stay as it was is in both, bitwise the same."""
        return not any(difference.breaks for difference in self.differences)


def verify_checkpoints(
    base: str | Path,
    tuned: str | Path,
    *,
    plan: Plan | None = None,
    ignore: Iterable[SelectorLike] = (),
    progress: Progress | None = None,
) -> Verification:
    """Compare two checkpoints bit by bit, and tell whether a plan was kept.

    Either may be a ``.safetensors`` or ``.pt`` file, a folder as Hugging Face writes it, in shards
    or not, or a delta. Nothing is unpickled, and a few MiB are in memory at a time. A tensor that
    is missing under one name and there under a tied one is there.

    The plan is kept if every tensor that it freezes is in both and bitwise the same. Without a
    plan, a delta must fit the base, with all that was frozen when it was saved unchanged.

    Args:
        base: the checkpoint before training.
        tuned: the one after.
        plan: what was to be frozen, by name; if left out, what a delta says.
        ignore: selectors of tensors that may differ, such as the base's old head.
        progress: called with the bytes read so far, and all that are to be read.

    Raises:
        CheckpointError: (a ValueError) one can't be read, is damaged or no checkpoint.
        SelectorError: (a ValueError) a rule of the plan, or ``ignore``, matches nothing.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     torch.save({"body": torch.zeros(2), "head": torch.zeros(2)}, Path(folder, "base.pt"))
    ...     torch.save({"body": torch.zeros(2), "head": torch.ones(2)}, Path(folder, "tuned.pt"))
    ...     found = verify_checkpoints(
    ...         Path(folder, "base.pt"), Path(folder, "tuned.pt"), plan=Plan.all_but("head")
    ...     )
    >>> found.kept, [(d.name, d.state, d.max_abs) for d in found.differences]
    (True, [('head', 'changed', 1.0)])
    """
    before, after = read_side(base), read_side(tuned)
    frozen = _frozen_names(before, after, plan)
    ignored = _ignored_names(before, after, ignore)
    known = after.delta or before.delta
    found, same = _compare(before, after, progress)
    judged = [_judge(one, held, frozen, ignored, after, plan) for one, held in found]
    judged.sort(key=lambda difference: not difference.breaks)
    everything = {held.name: held for held in (*before.tensors, *after.tensors)}
    return Verification(
        base=Path(base),
        tuned=Path(tuned),
        plan=plan if plan is not None else known.plan if known is not None else None,
        same=same,
        frozen=sum(bool(frozen & set(held.names)) for held in everything.values()),
        nbytes=before.nbytes + after.nbytes,
        differences=tuple(judged),
    )


def _compare(
    before: Side, after: Side, progress: Progress | None
) -> tuple[list[tuple[Difference, Held]], int]:
    """The differences, not yet judged, and how many tensors are the same."""
    # Each pair once, though both may have several names.
    pairs = {
        (id(held), id(other)): (held, other)
        for held in before.tensors
        for name in held.names
        if (other := after.by_name.get(name)) is not None
    }
    total = sum(held.nbytes + other.nbytes for held, other in pairs.values())
    found: list[tuple[Difference, Held]] = []
    same = done = 0
    with ContentReader() as one, ContentReader() as other_reader:
        for held, other in pairs.values():
            difference = _difference(held, other, one, other_reader)
            if difference is None:
                same += 1
            else:
                found.append((difference, other))
            done += held.nbytes + other.nbytes
            if progress is not None:
                progress(done, total)
    for held in before.tensors:
        if not any(name in after.by_name for name in held.names):
            found.append((_plain(held.name, "missing"), held))
    for held in after.tensors:
        if not any(name in before.by_name for name in held.names):
            found.append((_plain(held.name, "added"), held))
    return found, same


def _difference(
    before: Held, after: Held, one: ContentReader, other: ContentReader
) -> Difference | None:
    shared = next(name for name in before.names if name in after.names)
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        reason = f"{before.dtype} {list(before.shape)} → {after.dtype} {list(after.shape)}"
        return replace(_plain(shared, "changed"), reason=reason)
    if before.stored is None or after.stored is None:
        if before.content(one) == after.content(other):
            return None
        return replace(_plain(shared, "changed"), reason="the delta is of another base")
    amount = _amount(before.stored, after.stored, one, other)
    return None if amount is None else replace(_plain(shared, "changed"), max_abs=amount)


def _amount(
    before: StoredTensor, after: StoredTensor, one: ContentReader, other: ContentReader
) -> float | None:
    """The largest change of an element; None if all bits are the same."""
    amount: float | None = None
    dtype = getattr(torch, before.dtype, None)
    for left, right in zip(one.pieces(before), other.pieces(after), strict=True):
        if _same(left, right):
            continue
        a, b = (torch.frombuffer(piece, dtype=torch.uint8) for piece in (left, right))
        change = _largest(a, b, dtype)
        # NaN stays: a comparison with it is false.
        amount = change if amount is None or not change <= amount else amount
    return amount


def _same(left: memoryview, right: memoryview) -> bool:
    """Whether all bits agree; by words where it can be, which is ten times as fast as by bytes."""
    word = np.uint8 if len(left) % 8 else np.uint64
    return np.array_equal(np.frombuffer(left, word), np.frombuffer(right, word))


def _largest(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype | None) -> float:
    if dtype is None:
        return float("nan")
    a, b = before.view(dtype), after.view(dtype)
    if dtype.is_complex:
        a, b = a.to(torch.complex128), b.to(torch.complex128)
    elif not dtype.is_floating_point:
        a, b = a.double(), b.double()
    elif a.element_size() < 4:
        a, b = a.float(), b.float()
    return float(torch.linalg.vector_norm(b - a, float("inf")))


def _judge(
    difference: Difference,
    held: Held,
    frozen: set[str],
    ignored: set[str],
    after: Side,
    plan: Plan | None,
) -> Difference:
    names = {difference.name, *held.names}
    knows = plan is not None or after.delta is not None
    is_frozen = bool(names & frozen)
    # Whatever a plan says of it, a delta is nothing without the rest of its base.
    misfit = after.delta is not None and held.stored is None and difference.state == "changed"
    breaks = (is_frozen or misfit) and not names & ignored
    return replace(difference, frozen=is_frozen if knows else None, breaks=breaks)


def _frozen_names(before: Side, after: Side, plan: Plan | None) -> set[str]:
    """Names, all of a tied tensor, of what was to stay as it was."""
    if plan is None:
        delta = after.delta or before.delta
        told = delta.tensors if delta is not None else ()
        return {name for tensor in told if tensor.frozen for name in tensor.names}
    # A delta lists its whole model, and the plan is about that: what only the base has is free.
    listing = _joined(after, after) if after.delta is not None else _joined(before, after)
    handle = apply_plan(skeleton(listing), plan, everything=True)
    first = {*handle.names, *handle.buffers}
    return {
        name
        for side in (before, after)
        for held in side.tensors
        if first & set(held.names)
        for name in held.names
    }


def _ignored_names(before: Side, after: Side, ignore: Iterable[SelectorLike]) -> set[str]:
    chosen = list(ignore)
    if not chosen:
        return set()
    stand_in = skeleton(_joined(before, after), as_parameters=True)
    return {name for what in chosen for name in select(stand_in, what).names}


def _joined(before: Side, after: Side) -> Listing:
    """All tensors of two sides as one listing, those of the first as they are there."""
    more = [t for t in after.listed() if t.name not in before.by_name]
    return Listing(path=before.path, files=(), tensors=(*before.listed(), *more))


def _plain(name: str, state: Literal["changed", "added", "missing"]) -> Difference:
    return Difference(name=name, state=state, frozen=None, breaks=False)
