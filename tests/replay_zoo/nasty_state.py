"""State that moves inside the frozen part, and values that go by the side."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import functional

from replay_zoo.nasty import Net, Part, nasty, plain_net, plain_part
from replay_zoo.settings import Setting

_SEEN: list[Tensor] = []
_SHIFT: ContextVar[Tensor | None] = ContextVar("shift", default=None)
_LOCAL = threading.local()


def _counts_calls(part: Part, x: Tensor) -> Tensor:
    part.calls += 1
    return plain_part(part, x) * (1.0 if part.calls <= 10 else 3.0)


def _counts_first(part: Part, x: Tensor) -> Tensor:
    part.calls += 1
    return plain_part(part, x * (1.0 if part.calls <= 10 else 3.0))


def _counts_in_dict(part: Part, x: Tensor) -> Tensor:
    part.memory["calls"] = part.memory.get("calls", 0) + 1
    return plain_part(part, x * (1.0 if part.memory["calls"] <= 10 else 3.0))


def _counts_in_buffer(part: Part, x: Tensor) -> Tensor:
    part.steps += 1
    return plain_part(part, x)


def _warms_up(part: Part, x: Tensor) -> Tensor:
    part.steps += 1
    return plain_part(part, x) * (part.steps / 16).clamp(max=1)


def _codebook(part: Part, x: Tensor) -> Tensor:
    hidden = plain_part(part, x)
    nearest = torch.cdist(hidden, part.codes).argmin(-1)
    chosen = part.codes[nearest]
    part.codes[nearest] = 0.9 * chosen + 0.1 * hidden
    return chosen


def _power_iteration(part: Part, x: Tensor) -> Tensor:
    with torch.no_grad():
        part.u.copy_(functional.normalize(part.fc1.weight @ part.u, dim=0))
    return part.fc2(functional.linear(x, part.fc1.weight / part.u.norm(), part.fc1.bias))


def _rescales_and_back(part: Part, x: Tensor) -> Tensor:
    with torch.no_grad():
        part.fc1.weight.div_(2)
        hidden = plain_part(part, x)
        part.fc1.weight.mul_(2)
    return hidden


def _caches_table(part: Part, x: Tensor) -> Tensor:
    if part.table is None:
        part.table = torch.sin(torch.arange(8.0))
    return plain_part(part, x + part.table)


def _grows_table(part: Part, x: Tensor) -> Tensor:
    needed = int(x.abs().max().ceil())
    if part.table is None or len(part.table) < needed:
        part.table = torch.cos(torch.arange(float(needed)))
    return plain_part(part, x * part.table[0])


def _remembers_last(part: Part, x: Tensor) -> Tensor:
    before = part.last
    part.last = x.detach().mean(0)
    return plain_part(part, x if before is None else x + before)


def _stores_on_self(part: Part, x: Tensor) -> Tensor:
    part.hidden = torch.tanh(part.fc1(x))
    return part.fc2(part.hidden)


def _reads_from_part(net: Net, x: Tensor) -> Tensor:
    out = net.part(x)
    return net.head(net.drop(out + net.part.hidden))


def _stores_globally(part: Part, x: Tensor) -> Tensor:
    _SEEN.clear()
    _SEEN.append(torch.tanh(part.fc1(x)))
    return part.fc2(_SEEN[0])


def _reads_globally(net: Net, x: Tensor) -> Tensor:
    out = net.part(x)
    return net.head(net.drop(out + _SEEN[0]))


def _fills_dict(part: Part, x: Tensor, cache: dict[str, Tensor]) -> Tensor:
    cache["hidden"] = torch.tanh(part.fc1(x))
    return part.fc2(cache["hidden"])


def _passes_dict(net: Net, x: Tensor) -> Tensor:
    cache: dict[str, Tensor] = {}
    out = net.part(x, cache)
    return net.head(net.drop(out + cache["hidden"]))


def _reads_clock(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x + 0.0 * (time.time() % 1))


def _reads_context(part: Part, x: Tensor) -> Tensor:
    shift = _SHIFT.get()
    return plain_part(part, x if shift is None else x + shift)


def _sets_context(net: Net, x: Tensor) -> Tensor:
    token = _SHIFT.set(x.mean(1, keepdim=True))
    try:
        return plain_net(net, x)
    finally:
        _SHIFT.reset(token)


def _reads_local(part: Part, x: Tensor) -> Tensor:
    return plain_part(part, x + _LOCAL.live)


def _sets_local(net: Net, x: Tensor) -> Tensor:
    _LOCAL.live = net.head.weight.detach().mean(0)
    return plain_net(net, x)


SETTINGS: list[Setting] = [
    nasty(
        "counts-calls",
        "the output's scale changes after ten calls",
        "either",
        part=_counts_calls,
        attributes=lambda: {"calls": 0},
    ),
    nasty(
        "counts-first",
        "the input's scale changes after ten calls",
        "either",
        part=_counts_first,
        attributes=lambda: {"calls": 0},
    ),
    nasty(
        "counts-in-dict",
        "the calls are counted in a dictionary",
        "either",
        part=_counts_in_dict,
        attributes=lambda: {"memory": {}},
    ),
    nasty(
        "counts-in-buffer",
        "a buffer counts the calls, in eval too",
        "either",
        part=_counts_in_buffer,
        attributes=lambda: {"steps": torch.zeros(())},
    ),
    nasty(
        "warms-up",
        "the scale grows with a buffer that counts",
        "either",
        part=_warms_up,
        attributes=lambda: {"steps": torch.zeros(())},
    ),
    nasty(
        "codebook",
        "a codebook that moves towards what it sees",
        "either",
        part=_codebook,
        attributes=lambda: {"codes": torch.randn(6, 8)},
    ),
    nasty(
        "power-iteration",
        "a vector that is improved at every call",
        "either",
        part=_power_iteration,
        attributes=lambda: {"u": torch.ones(8)},
    ),
    nasty(
        "rescales-and-back",
        "weights halved for the call, and doubled after",
        "identical",
        part=_rescales_and_back,
    ),
    nasty(
        "caches-table",
        "a table made at the first call",
        "identical",
        part=_caches_table,
        attributes=lambda: {"table": None},
    ),
    nasty(
        "grows-table",
        "a table that grows when a batch needs it",
        "either",
        part=_grows_table,
        attributes=lambda: {"table": None},
    ),
    nasty(
        "remembers-last",
        "what the batch before left on the module",
        "either",
        part=_remembers_last,
        attributes=lambda: {"last": None},
    ),
    nasty(
        "stores-on-self",
        "live code reads what a frozen call left on its module",
        "either",
        part=_stores_on_self,
        net=_reads_from_part,
        attributes=lambda: {"hidden": None},
    ),
    nasty(
        "stores-globally",
        "the same through a list of the file",
        "either",
        part=_stores_globally,
        net=_reads_globally,
    ),
    nasty(
        "fills-dict",
        "the same through a dictionary that is passed in",
        "either",
        part=_fills_dict,
        net=_passes_dict,
    ),
    nasty("reads-clock", "the clock is read, to no effect", "either", part=_reads_clock),
    nasty(
        "context",
        "live code hands the part its input by a context variable",
        "either",
        part=_reads_context,
        net=_sets_context,
    ),
    nasty(
        "live-local",
        "a trained value reaches the part by a thread local",
        "either",
        part=_reads_local,
        net=_sets_local,
    ),
]
