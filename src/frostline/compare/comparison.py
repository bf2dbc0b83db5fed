"""What came of the ways: plain results, whatever draws conclusions from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from frostline.measure import Prediction, StepTime

Way: TypeAlias = Literal["none", "grad", "optimizer", "best", "replay"]
"""``none``: nothing is frozen. ``grad``: ``requires_grad=False``, the optimizer is given
everything. ``optimizer``: the optimizer is given only the rest. ``best``: both. ``replay``: both,
and what is frozen is computed once a sample."""

WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What replay did in its way.

    Attributes:
        kept_bytes: bytes that it keeps for all batches.
        batches: replayed batches, those that were timed included.
        is_same: whether all tensors then had the bits that they have in ``best`` after as many
            steps.
        why_not: why none was replayed; None if some were.
    """

    kept_bytes: int
    batches: int
    is_same: bool
    why_not: str | None


@dataclass(frozen=True, kw_only=True)
class WayResult:
    """What one way did and took.

    Attributes:
        way: which.
        changed: name of each parameter and buffer → the largest absolute change of an element
            after all steps; exactly 0.0 if, and only if, every bit is the same.
        requires_grad: name of each parameter → its flag.
        gradient_bytes: gradients held after a backward pass.
        leftover_gradient_bytes: gradients that ``optimizer.zero_grad()`` leaves behind.
        optimizer_state_bytes: what the optimizer keeps between steps.
        activation_bytes: what the forward pass keeps for backward.
        step_time: duration of a whole step.
        predicted: the same memory, foretold without computing.
        replayed: what replay did; None in the other ways.
    """

    way: Way
    changed: Mapping[str, float]
    requires_grad: Mapping[str, bool]
    gradient_bytes: int
    leftover_gradient_bytes: int
    optimizer_state_bytes: int
    activation_bytes: int
    step_time: StepTime
    predicted: Prediction
    replayed: Replayed | None = None

    def moved(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of ``names`` whose tensor changed."""
        return tuple(name for name in names if self.changed[name] != 0.0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The ways side by side.

    Attributes:
        ways: one result each, in the order of :data:`WAYS`.
        frozen: names of the parameters that were to be frozen.
        frozen_buffers: names of the buffers in modules that were to be frozen.
        trained: names of the other parameters.
        late_state_bytes: optimizer state that way ``grad`` keeps if the freeze comes after the
            first step instead of before it.
        steps: training steps after which the tensors were compared.
    """

    ways: tuple[WayResult, ...]
    frozen: tuple[str, ...]
    frozen_buffers: tuple[str, ...]
    trained: tuple[str, ...]
    late_state_bytes: int
    steps: int

    def __getitem__(self, way: Way) -> WayResult:
        """The result of one way."""
        return self.ways[WAYS.index(way)]
