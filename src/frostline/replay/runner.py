"""Passes of a model under stand-ins: for real, or for trial without traces."""

from __future__ import annotations

import contextvars
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from frostline.errors import ReplayError
from frostline.proof.traceless import no_traces, same_bits
from frostline.replay.catcher import Catcher
from frostline.replay.content import sample_digests
from frostline.replay.frame import Enough, Frame, Mode
from frostline.replay.graph import Graph
from frostline.replay.nest import Nest, open_nest, rebuild
from frostline.replay.plan import Plan
from frostline.replay.sharded_blocks import come_to_rest
from frostline.replay.stand_in import Forward
from frostline.replay.trace import trace

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, eq=False)
class TopLevel:
    """A call of a model, or of a part of it, by the user's loop.

    Attributes:
        model: the whole model.
        name: canonical name of the module that is called.
        module: that module.
        forward: its forward, without stand-in.
        args: what it is called with.
        kwargs: by keyword.
    """

    model: nn.Module
    name: str
    module: nn.Module
    forward: Forward
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @cached_property
    def given(self) -> Nest:
        """What it is called with, taken apart; objects, too."""
        return open_nest((self.args, self.kwargs), into_objects=True)

    def run(self) -> Any:
        """Make it, as ever."""
        return self.forward(*self.args, **self.kwargs)

    def has_rows(self, samples: int) -> bool:
        """Whether an input has a row for each sample."""
        return any(samples in tensor.shape for tensor in self.given.tensors)

    def with_tensors(self, tensors: list[Tensor]) -> TopLevel:
        """The same call with other tensor arguments."""
        args, kwargs = rebuild((self.args, self.kwargs), tensors)
        return TopLevel(
            model=self.model,
            name=self.name,
            module=self.module,
            forward=self.forward,
            args=args,
            kwargs=kwargs,
        )

    def kept(self) -> TopLevel:
        """The same call, safe from what the loop does to its batch later."""
        tensors = open_nest((self.args, self.kwargs)).tensors
        return self.with_tensors([tensor.detach().clone() for tensor in tensors])

    def traced(self) -> Graph:
        """Make it for trial, under observation."""
        return _for_trial(
            self.model,
            lambda: trace(self.model, self.name, self.forward, self.args, self.kwargs),
            parameters=False,
        )


def start_digests(plan: Plan, call: TopLevel, ids: tuple[int, ...]) -> list[list[bytes]]:
    """Columns: the samples' names, and what comes into the frozen part other than as arguments."""
    hidden = [call.given.tensors[position] for position in plan.cut.hidden_inputs]
    names = [b"%d;" % name for name in ids]
    return [names, *(sample_digests(tensor, plan.samples) for tensor in hidden)]


def run_frame(
    plan: Plan,
    call: TopLevel,
    ids: tuple[int, ...],
    mode: Mode,
    catcher: Catcher,
    *,
    remembered: Sequence[Sequence[bytes]] | None = None,
    earlier: Plan | None = None,
) -> tuple[Any, Frame]:
    """Make a call with a frame at the planned calls.

    Args:
        plan: the cut.
        call: the call.
        ids: the samples.
        mode: as :class:`Frame` has it.
        catcher: catches the calls of planned modules.
        remembered: as :class:`Frame` has it.
        earlier: a cut further in front, from whose records what has to be computed is computed.

    Raises:
        Irregular: the pass went another way than the traced one while it was replayed.
    """
    inputs = call.given.tensors
    inner = (
        Frame(earlier, start_digests(earlier, call, ids), inputs=inputs)
        if earlier is not None
        else None
    )
    start_at = start_digests(plan, call, ids) if remembered is None else [[b""] * len(ids)]
    frame = Frame(plan, start_at, mode, remembered=remembered, inner=inner, inputs=inputs)
    catcher.cover(plan.names if earlier is None else plan.names | earlier.names)
    catcher.direct(frame)
    start = time.perf_counter()
    try:
        output = frame.call(call.name, call.module, call.forward, call.args, call.kwargs)
        frame.finish(output)
    except Enough:
        return None, frame
    finally:
        catcher.direct(None)
    if not frame.replayed:
        plan.seconds = min(plan.seconds or math.inf, time.perf_counter() - start)
    if frame.replayed and plan.cut.hides:
        tensors = open_nest(output).tensors
        output = rebuild(output, tensors, objects=lambda held: NotKept(type(held).__name__))
    return output, frame


def try_frame(
    plan: Plan,
    call: TopLevel,
    ids: tuple[int, ...],
    mode: Mode,
    catcher: Catcher,
    *,
    remembered: Sequence[Sequence[bytes]] | None = None,
) -> tuple[Any, Frame]:
    """The same for trial: the model and all random generators are left as they were."""
    catcher.cover(plan.names)  # before the model's attributes are noted, to be put back
    return _for_trial(
        call.model,
        lambda: run_frame(plan, call, ids, mode, catcher, remembered=remembered),
        parameters=plan.graph.writes_model,
    )


class NotKept:
    """Stands in for an object in a model's output that a replay does not fill (a cache of keys)."""

    def __init__(self, kind: str) -> None:
        self.__dict__["kind"] = kind

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ReplayError(
            f"this {self.kind} was not filled: the modules that fill it were replayed. Call the"
            " model outside of replay if you need it"
        )


ROUNDING = 256
"""Where rounding is accepted: how many units in the last place of a tensor's largest value."""


def same_values(one: Tensor, other: Tensor, *, rounding: bool) -> bool:
    """Whether two tensors hold the same bits, or nearly the same values if rounding is accepted."""
    if same_bits(one, other):
        return True
    if not rounding or not one.is_floating_point() or one.shape != other.shape:
        return False
    amount = (one - other).abs().max()
    return bool(amount <= ROUNDING * torch.finfo(one.dtype).eps * other.abs().max())


def same_output(one: Any, other: Any, *, rounding: bool) -> bool:
    """Whether two outputs have the same form and values; opaque objects count as the same."""
    left, right = open_nest(one), open_nest(other)
    if len(left.tensors) != len(right.tensors):
        return False
    if not left.opaque and not right.opaque and left.form != right.form:
        return False
    return all(
        a.requires_grad == b.requires_grad and same_values(a, b, rounding=rounding)
        for a, b in zip(left.tensors, right.tensors, strict=True)
    )


def _for_trial(model: nn.Module, run: Callable[[], _T], *, parameters: bool) -> _T:
    # In a copy of the context: what models keep in context variables is restored, too.
    try:
        with no_traces(model, parameters=parameters):
            return contextvars.copy_context().run(run)
    finally:
        come_to_rest(model)
