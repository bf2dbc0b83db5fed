"""What moved although it was frozen, by how much, and the likely cause."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Change:
    """One frozen tensor that did not stay bitwise the same.

    Attributes:
        name: canonical name.
        kind: ``parameter`` or ``buffer``.
        elements: number of elements that it had when it was frozen.
        moved: how many elements differ in at least one bit; None where only a sample could be
            compared, or nothing.
        max_abs: largest absolute difference seen; nan if unknown.
        sampled: (compared, moved) where only a sample was compared, else None.
        cause: the likely cause and the mend.
    """

    name: str
    kind: Literal["parameter", "buffer"]
    elements: int
    moved: int | None
    max_abs: float
    sampled: tuple[int, int] | None = None
    cause: str

    @property
    def extent(self) -> str:
        """How many elements moved and by how much at most, in words."""
        if self.moved is not None:
            extent = f"{self.moved:,} of {self.elements:,} elements moved"
        elif self.sampled is not None and self.sampled[1]:
            compared, moved = self.sampled
            extent = f"{moved:,} of {compared:,} sampled elements (of {self.elements:,}) moved"
        elif self.sampled is not None:
            extent = f"few of {self.elements:,} elements moved, none of {self.sampled[0]:,} sampled"
        else:
            return "its content differs"
        return extent if math.isnan(self.max_abs) else f"{extent}, by at most {self.max_abs:.3g}"

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.extent}; likely cause: {self.cause}"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The outcome of a check that held: every frozen tensor is bitwise what it was.

    Attributes:
        parameters: number of frozen parameters compared.
        buffers: number of buffers of frozen modules compared.
        bytes: bytes that were read and compared.
        seconds: time that the comparison took.
        ok: True; a check that does not hold raises instead.
    """

    parameters: int
    buffers: int
    bytes: int
    seconds: float
    ok: Literal[True] = True

    @property
    def tensors(self) -> int:
        """Number of tensors compared."""
        return self.parameters + self.buffers


def describe(changes: Sequence[Change], checked: int) -> str:
    """The message for tensors that moved: one line each, the first eight of them."""
    lines = [f"{len(changes)} of {checked} frozen tensors changed:"]
    lines += [f"  {change}" for change in changes[:8]]
    if len(changes) > 8:
        lines.append(f"  and {len(changes) - 8} more")
    return "\n".join(lines)
