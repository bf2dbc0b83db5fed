"""Where replay would cut a model, found on one batch, without training and without traces."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import ModelTypeError, ReplayError
from frostline.proof.traceless import no_traces
from frostline.replay.fields import leaves
from frostline.replay.frost_line_table import line_table
from frostline.replay.nest import open_nest, rebuild
from frostline.replay.plan import Plan, Station
from frostline.replay.replayer import Replayer
from frostline.replay.store import Store

_GROUPINGS = 4
"""Regrouped copies of the batch: what depends on batch-mates shows between them."""
_ROUNDS = 6
"""Times that the copies are gone through, until enough replays are timed."""
_TIMED = 5


@dataclass(frozen=True, kw_only=True)
class SkippedCall:
    """A frozen call that a replay does not make.

    Attributes:
        place: the module's canonical name; "(call 2)" and so on behind it, if it is called again.
        type_name: its class.
        bytes_per_sample: bytes that are kept of it for each sample; 0 if nothing live uses it.
        bytes_once: bytes that are kept of it once, since they are the same for all samples.
        share: its share of the time of a forward pass, from 0 to 1.
    """

    place: str
    type_name: str
    bytes_per_sample: int
    bytes_once: int
    share: float


@dataclass(frozen=True, kw_only=True)
class FrostLine:
    """Where the frozen part of a model ends, as :func:`frost_line` found it on a batch.

    ``print`` shows it as a table.

    Attributes:
        calls: the frozen calls that are not made any more, in order.
        refused: frozen calls that are made every time → why.
        needless_inputs: fields of the batch that only skipped calls use, so that they need not be
            loaded: keys, or positions as text.
        samples: samples of the batch.
        forward_seconds: median time of a forward pass of the batch.
        replayed_seconds: the same where it is replayed, reading included; None if it is not.
        declined: why nothing is replayed, and what to do; None if something is.
    """

    calls: tuple[SkippedCall, ...]
    refused: Mapping[str, str]
    needless_inputs: tuple[str, ...]
    samples: int
    forward_seconds: float
    replayed_seconds: float | None
    declined: str | None

    @property
    def skipped(self) -> tuple[str, ...]:
        """Places of the calls that are not made any more, in order."""
        return tuple(call.place for call in self.calls)

    @property
    def kept(self) -> Mapping[str, int]:
        """The frost line: places of which something is kept → bytes a sample."""
        return {
            call.place: call.bytes_per_sample
            for call in self.calls
            if call.bytes_per_sample or call.bytes_once
        }

    @property
    def bytes_per_sample(self) -> int:
        """Bytes that are kept for each sample, of all calls together."""
        return sum(call.bytes_per_sample for call in self.calls)

    @property
    def bytes_once(self) -> int:
        """Bytes that are kept once, whatever the number of samples."""
        return sum(call.bytes_once for call in self.calls)

    @property
    def skipped_share(self) -> float:
        """Share of the time of a forward pass that goes away, from 0 to 1."""
        return min(1.0, sum(call.share for call in self.calls))

    def __str__(self) -> str:
        return line_table(self)


def frost_line(
    model: nn.Module,
    batch: Any,
    *,
    samples: int | None = None,
    store: str | Path | Store = "memory",
) -> FrostLine:
    """Find where replay would cut a model, by some forward passes for trial.

    The passes record, regroup and replay the batch as training would, so what replay refuses
    there it refuses here. Model and random generators are left exactly as they were. The model is
    looked at in the modes that it is in: ``model.train()`` first, if it is about to train.

    Args:
        model: frozen in part, by :func:`frostline.freeze` or by hand.
        batch: a mapping is given as ``model(**batch)``, a tuple or list as ``model(*batch)``, all
            else as ``model(batch)``.
        samples: how many samples the batch has; the size of its first tensor's first dimension if
            left out.
        store: where the trial records, so that reading from there is what is timed.

    Raises:
        ModelTypeError: (a TypeError) the model is no module.
        ReplayError: (a RuntimeError) the batch holds no tensor that counts samples.

    >>> import frostline as fl, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> frozen = fl.freeze(model, all_but="2")
    >>> line = frost_line(model, torch.randn(32, 8))
    >>> line.skipped, line.kept, line.bytes_per_sample
    (('0', '1'), {'1': 32}, 32)
    """
    if not isinstance(model, nn.Module):
        raise ModelTypeError(f"a torch.nn.Module is wanted, got {type(model).__name__}")
    args, kwargs = _arguments(batch)
    size = _number_of_samples((args, kwargs)) if samples is None else samples
    with no_traces(model):
        trial = _Trial(model, args, kwargs, size, store)
        trial.run()
    plan = trial.plan
    is_replayed = plan is not None and bool(trial.replayed_seconds)
    return FrostLine(
        calls=_skipped(plan, trial) if plan is not None and is_replayed else (),
        refused=dict(trial.replayer.refused),
        needless_inputs=_needless(plan, args, kwargs) if plan and is_replayed else (),
        samples=size,
        forward_seconds=median(trial.plain_seconds),
        replayed_seconds=median(trial.replayed_seconds) if is_replayed else None,
        declined=None if is_replayed else trial.declined,
    )


class _Trial:
    """Passes of one model over one batch and regrouped copies of it.

    Attributes:
        replayer: what records and replays.
        plain_seconds: times of plain passes.
        replayed_seconds: times of replayed passes that were not audited.
        call_seconds: times of each planned call, by its rank, in passes that were recorded.
    """

    def __init__(
        self, model: nn.Module, args: Any, kwargs: Any, samples: int, store: str | Path | Store
    ) -> None:
        self.replayer = Replayer(model, store=store)
        self.plain_seconds: list[float] = []
        self.replayed_seconds: list[float] = []
        self.call_seconds: defaultdict[int, list[float]] = defaultdict(list)
        self._model = model
        self._samples = samples
        self._batches = [
            _regrouped((args, kwargs), samples, grouping) for grouping in range(_GROUPINGS)
        ]

    @property
    def plan(self) -> Plan | None:
        """The cut that was settled on."""
        plans = self.replayer.passes.table.plans
        return plans[-1] if plans else None

    @property
    def declined(self) -> str:
        """Why nothing was replayed."""
        return self.replayer.declined or "no pass could be replayed like the one before it"

    def run(self) -> None:
        """Go through the batches until it is clear whether and how fast they are replayed."""
        for number in range(_ROUNDS):
            for grouping, (args, kwargs) in enumerate(self._batches):
                if len(self.replayed_seconds) >= _TIMED:
                    return
                self._plainly(args, kwargs)
                # Between rounds the frozen weights are checked, once an epoch: not timed.
                self._under_replay(grouping, args, kwargs, is_timed=number > 0 < grouping)
            if self.replayer.declined is not None:
                return

    def _plainly(self, args: Any, kwargs: Any) -> None:
        start = time.perf_counter()
        self._model(*args, **kwargs)
        self.plain_seconds.append(time.perf_counter() - start)

    def _under_replay(self, grouping: int, args: Any, kwargs: Any, *, is_timed: bool) -> None:
        first = grouping * self._samples
        before = self.replayer.stats
        start = time.perf_counter()
        with self.replayer.samples(range(first, first + self._samples)):
            self._model(*args, **kwargs)
        seconds = time.perf_counter() - start
        after = self.replayer.stats
        if is_timed and after.replayed > before.replayed and after.compared == before.compared:
            self.replayed_seconds.append(seconds)
        elif after.recorded > before.recorded and self.plan is not None:
            for station in self.plan.stations:
                if station.seconds:  # the first pass takes its values from the trace, in no time
                    self.call_seconds[station.order].append(station.seconds)


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, tuple | list) else ((batch,), {})


def _number_of_samples(given: Any) -> int:
    for tensor in open_nest(given).tensors:
        if tensor.ndim and tensor.shape[0]:
            return int(tensor.shape[0])
    raise ReplayError(
        "the batch holds no tensor with a dimension that counts samples; give what the model is"
        " called with: a dict, a tuple, or a tensor"
    )


def _regrouped(given: Any, samples: int, grouping: int) -> Any:
    """The same samples among other batch-mates, in other places; the first grouping is as given."""
    if grouping == 0 or samples == 1:
        return given
    orders = (
        [place // 2 for place in range(samples)],
        [samples - 1 - place // 2 for place in range(samples)],
        [(place + 1) % samples for place in range(samples)],
    )
    order = torch.tensor(orders[(grouping - 1) % len(orders)])

    def picked(tensor: Tensor) -> Tensor:
        dims = [dim for dim, size in enumerate(tensor.shape) if size == samples]
        return tensor.index_select(dims[0], order.to(tensor.device)) if dims else tensor

    return rebuild(given, [picked(tensor) for tensor in open_nest(given).tensors])


def _skipped(plan: Plan, trial: _Trial) -> tuple[SkippedCall, ...]:
    # The least of each: neither had to wait for something else on the machine.
    total = min(trial.plain_seconds)
    return tuple(
        SkippedCall(
            place=str(station.planned.call.place),
            type_name=type(station.planned.call.module).__name__,
            bytes_per_sample=_bytes(station, station.cut_results),
            bytes_once=_bytes(station, station.whole_results),
            share=min(1.0, min(trial.call_seconds[station.order], default=0.0) / total),
        )
        for station in plan.stations
    )


def _bytes(station: Station, positions: Sequence[int]) -> int:
    return sum(station.layouts[position].record_bytes for position in positions)


def _needless(plan: Plan, args: Any, kwargs: Any) -> tuple[str, ...]:
    given = open_nest((args, kwargs), into_objects=True).tensors
    needed = [tensor for tensor, used in zip(given, plan.cut.needed_inputs, strict=True) if used]
    fields = leaves(kwargs or args)
    return tuple(
        path
        for path, leaf in fields.items()
        if any(tensor is leaf for tensor in given) and not any(tensor is leaf for tensor in needed)
    )
