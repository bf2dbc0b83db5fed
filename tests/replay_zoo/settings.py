"""A setting: a model, its data, what trains; run with and without replay, and the verdict."""

from __future__ import annotations

import math
import random
import struct
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import frostline as fl

Batch = Mapping[str, Any] | tuple[Any, ...]
Ruling = Literal["identical", "declined", "rounding", "stopped", "WRONG", "broken"]
"""``stopped``: replay ended the run with an error of its own; ``broken``: the fault is the
setting's own, since it fails without replay."""

ROUNDING = 1e-3
"""Relative difference of losses up to which a replay that says it rounds is taken at its word."""


def own_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss that a transformers model computes from the labels in its batch."""
    return model(**batch).loss


def nothing(model: nn.Module, epoch: int) -> None:
    """What most loops do to their model before an epoch."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One model, cut in one way.

    Attributes:
        name: ``architecture/cut``.
        make: builds the model; the seed decides its weights.
        batch: n samples; the seed decides their values. Tensors of n rows are cut into batches,
            anything else goes into every batch as it is.
        trains: what ``fl.freeze(model, all_but=…)`` leaves trainable; None if ``make`` froze.
        loss: the forward pass of one step.
        options: further arguments of ``fl.freeze``.
        replay: further arguments of ``fl.Replayer``.
        before_epoch: what the loop does to the model before each epoch.
        samples: how many samples an epoch has; batches hold five.
        nasty: what makes replay hard here, in one line.
        expects: the rulings that are right.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    trains: tuple[str, ...] | None
    loss: Callable[[nn.Module, Any], Tensor] = own_loss
    options: Mapping[str, Any] = field(default_factory=dict)
    replay: Mapping[str, Any] = field(default_factory=dict)
    before_epoch: Callable[[nn.Module, int], None] = nothing
    samples: int = 20
    nasty: str = ""
    expects: frozenset[str] = frozenset({"identical", "declined", "rounding"})

    @property
    def architecture(self) -> str:
        """The name without the cut."""
        return self.name.split("/")[0]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left behind.

    Attributes:
        losses: one per step.
        state: parameters, buffers and gradients at the end.
        randomness: the state of torch's generator at the end.
        warned: the warnings raised on the way.
        seconds: of the last epoch.
        replayer: what replayed; None for a plain run.
    """

    losses: list[float]
    state: dict[str, Tensor]
    randomness: Tensor
    warned: frozenset[str]
    seconds: float
    replayer: Any


def run(
    setting: Setting, *, replayed: bool, epochs: int = 4, samples: int = 0, batch_size: int = 5
) -> Outcome:
    """Train for a few shuffled epochs; the same seeds, batches and steps in every run."""
    samples = samples or setting.samples
    _seed(1)
    model = setting.make()
    _seed(2)
    data = setting.batch(samples)
    if setting.trains is not None:
        fl.freeze(model, all_but=list(setting.trains), **setting.options)
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=1e-2)
    replayer: Any = fl.Replayer(model, **setting.replay) if replayed else None
    order = torch.Generator().manual_seed(3)
    losses: list[float] = []
    began = 0.0
    _seed(4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(epochs):
            began = time.perf_counter()
            setting.before_epoch(model, epoch)
            model.train()
            for ids in torch.randperm(samples, generator=order).split(batch_size):
                batch = rows_of(data, ids, samples)
                optimizer.zero_grad()
                with replayer.samples(ids) if replayer else nullcontext():
                    loss = setting.loss(model, batch)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    return Outcome(
        losses=losses,
        state=_everything(model),
        randomness=torch.get_rng_state(),
        warned=frozenset(f"{w.category.__name__}: {w.message}" for w in caught),
        seconds=time.perf_counter() - began,
        replayer=replayer,
    )


def _everything(model: nn.Module) -> dict[str, Tensor]:
    gradients = {
        f"the gradient of {name}": parameter.grad for name, parameter in model.named_parameters()
    }
    return {
        name: value.detach().clone()
        for name, value in {**model.state_dict(), **gradients}.items()
        if isinstance(value, Tensor)
    }


def rows_of(data: Any, ids: Tensor, samples: int) -> Any:
    """The samples ``ids`` of a batch."""
    if isinstance(data, Mapping):
        return {key: rows_of(value, ids, samples) for key, value in data.items()}
    if isinstance(data, tuple):
        return tuple(rows_of(value, ids, samples) for value in data)
    if isinstance(data, Tensor) and data.ndim and len(data) == samples:
        return data[ids]
    return data


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How replay did in one setting.

    Attributes:
        name: the setting's.
        ruling: identical, declined, rounding, stopped or WRONG; broken if the setting itself is.
        why: what differs, what was raised, or the reason of the decline.
        passes: (recorded, replayed, plain, compared).
        kept: the calls whose outputs are kept, by place.
        refused: the frozen calls that are made every time, by place, and why.
        skipped: share of the forward that a replay leaves out.
        warned: warnings that came with replay only.
        faster: the last epoch without replay over the last with it.
        seconds: that both runs took.
    """

    name: str
    ruling: Ruling
    why: str = ""
    passes: tuple[int, int, int, int] = (0, 0, 0, 0)
    kept: str = ""
    refused: tuple[str, ...] = ()
    skipped: float = 0.0
    warned: tuple[str, ...] = ()
    faster: float = 0.0
    seconds: float = 0.0


def verdict(setting: Setting) -> Verdict:
    """Run with and without replay, and compare all losses, weights and random numbers bitwise."""
    began = time.perf_counter()
    try:
        plain = run(setting, replayed=False)
    except Exception as error:
        return Verdict(name=setting.name, ruling="broken", why=_told(error))
    if still := _stands_still(plain):
        return Verdict(name=setting.name, ruling="broken", why=still)
    try:
        replayed = run(setting, replayed=True)
    except fl.ReplayError as error:
        return Verdict(name=setting.name, ruling="stopped", why=_told(error))
    except Exception as error:
        return Verdict(name=setting.name, ruling="WRONG", why=_told(error))
    ruling, why = _ruling(plain, replayed)
    if left := _left_behind(setting, plain):
        ruling, why = "WRONG", f"replay left something behind: {left}; {why}"
    stats = replayed.replayer.stats
    return Verdict(
        name=setting.name,
        ruling=ruling,
        why=why,
        passes=(stats.recorded, stats.replayed, stats.plain, stats.compared),
        kept=" ".join(dict.fromkeys(_kept(replayed.replayer))),
        refused=tuple(f"{place}: {why}" for place, why in replayed.replayer.refused.items()),
        skipped=stats.skipped_share,
        warned=tuple(sorted(replayed.warned - plain.warned)),
        faster=plain.seconds / max(replayed.seconds, 1e-9),
        seconds=time.perf_counter() - began,
    )


def is_repeatable(setting: Setting) -> str:
    """What differs between two runs without replay; empty for a setting that can judge."""
    first = run(setting, replayed=False)
    return _stands_still(first) or difference(first, run(setting, replayed=False))


def _left_behind(setting: Setting, plain: Outcome) -> str:
    """How a plain run differs now: by a hook, or a global value, that replay did not restore."""
    try:
        return difference(plain, run(setting, replayed=False))
    except Exception as error:
        return _told(error)


def difference(expected: Outcome, got: Outcome) -> str:
    """The first thing in which two outcomes are not the same bits, in words; empty if none."""
    for step, (a, b) in enumerate(zip(expected.losses, got.losses, strict=True)):
        if _bits(a) != _bits(b):
            return f"loss of step {step + 1} of {len(expected.losses)}: {b!r} for {a!r}"
    if odd := expected.state.keys() ^ got.state.keys():
        return f"{min(odd)}: only one of the runs has it at the end"
    for name, value in expected.state.items():
        if not _same_bits(value, got.state[name]):
            return f"{name} at the end"
    if not torch.equal(expected.randomness, got.randomness):
        return "the random stream at the end"
    return ""


def _kept(replayer: Any) -> list[str]:
    """For the eyes of who debugs replay: this looks inside, and no test depends on it."""
    plans = replayer.passes.table.plans
    return [str(p.call.place) for plan in plans for p in plan.cut.planned if p.is_kept]


def _ruling(plain: Outcome, replayed: Outcome) -> tuple[Ruling, str]:
    differs = difference(plain, replayed)
    declined = replayed.replayer.declined
    if not differs:
        if declined is not None:
            return "declined", declined
        if replayed.replayer.stats.replayed == 0:
            return "declined", "nothing was replayed"
        return "identical", ""
    close = np.allclose(plain.losses, replayed.losses, rtol=ROUNDING, equal_nan=True)
    if declined is None and not replayed.replayer.exact and close:
        return "rounding", differs
    return "WRONG", f"{differs} (declined: {declined})" if declined else differs


def _stands_still(outcome: Outcome) -> str:
    """Why the losses can't tell one run from another; empty if they can."""
    if len(set(outcome.losses)) < len(outcome.losses) // 2:
        return f"the losses hardly move: {sorted(set(outcome.losses))[:3]}"
    if not all(map(math.isfinite, outcome.losses)):
        return "the losses are not finite"
    return ""


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (x.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(a, b)


def _bits(value: float) -> bytes:
    return struct.pack("d", value)


def _told(error: Exception) -> str:
    """The exception and the last two places that it passed."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    places = " < ".join(
        f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(frames)
    )
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} [{places}]"


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
