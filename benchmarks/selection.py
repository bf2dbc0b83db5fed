"""fl.select and fl.freeze on large models, beside a hand-written loop over the same names.

Targets: under 50 ms on a 70B-shaped Llama (723 tensors, meta device), under 1 s on 100,000
tensors, growing linearly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from time import perf_counter

import torch
from _report import heading, interleave, medians, table, verdict
from torch import nn

import frostline as fl

WIDTH, KEY_VALUE_WIDTH, INNER_WIDTH, VOCABULARY, DEPTH = 8192, 1024, 28672, 128256, 80


class Attention(nn.Module):
    """Llama's grouped-query attention, as parameters only."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj = nn.Linear(WIDTH, KEY_VALUE_WIDTH, bias=False)
        self.v_proj = nn.Linear(WIDTH, KEY_VALUE_WIDTH, bias=False)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)


class FeedForward(nn.Module):
    """Llama's gated feed-forward block, as parameters only."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, INNER_WIDTH, bias=False)
        self.up_proj = nn.Linear(WIDTH, INNER_WIDTH, bias=False)
        self.down_proj = nn.Linear(INNER_WIDTH, WIDTH, bias=False)


class Layer(nn.Module):
    """One of the 80 decoder layers: nine tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.mlp = FeedForward()
        self.input_layernorm = nn.RMSNorm(WIDTH)
        self.post_attention_layernorm = nn.RMSNorm(WIDTH)


class Llama70B(nn.Module):
    """The parameters of a 70B Llama under their usual names: 723 tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.model.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.model.norm = nn.RMSNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)


def many_tensors(count: int) -> nn.Module:
    """A model of ``count`` small real tensors: blocks of five layers with weight and bias."""
    blocks = (nn.ModuleList(nn.Linear(2, 2) for _ in range(5)) for _ in range(count // 10))
    return nn.ModuleDict({"layers": nn.ModuleList(blocks)})


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """A measure of the whole call."""

    def measure() -> float:
        start = perf_counter()
        call()
        return perf_counter() - start

    return measure


def freeze_alone(model: nn.Module, trained: str) -> Callable[[], float]:
    """A measure of fl.freeze without the undo that readies the model for the next round."""

    def measure() -> float:
        start = perf_counter()
        frozen = fl.freeze(model, all_but=trained)
        seconds = perf_counter() - start
        frozen.undo()
        return seconds

    return measure


def freeze_by_hand(model: nn.Module, pattern: str) -> Callable[[], float]:
    """A measure of what people write: no check, no modes, no undo, no proof."""

    def measure() -> float:
        start = perf_counter()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = re.search(pattern, name) is not None
        seconds = perf_counter() - start
        model.requires_grad_(True)
        return seconds

    return measure


def measure(label: str, model: nn.Module, layers: str, rounds: int) -> list[tuple[str, float]]:
    """Time both ways to select and to freeze all but one layer; print one table."""
    one = f"{layers}.7"
    pattern = rf"(^|\.){re.escape(one)}\."
    taken = medians(
        interleave(
            {
                "select by hand": timed(
                    lambda: [n for n, _ in model.named_parameters() if re.search(pattern, n)]
                ),
                "fl.select, dotted name": timed(lambda: fl.select(model, one)),
                "fl.select, glob": timed(lambda: fl.select(model, f"**.{layers}.[0-7].**")),
                "fl.select, type:": timed(lambda: fl.select(model, "type:Linear")),
                "freeze by hand": freeze_by_hand(model, pattern),
                "fl.freeze": freeze_alone(model, one),
            },
            rounds=rounds,
            warmup=1,
        )
    )
    return [(f"{label}: {name}", seconds) for name, seconds in taken.items()]


def main() -> None:
    """Print both tables: the Llama, and growth with the number of tensors."""
    heading(
        "Selecting and freezing large models",
        "By hand is the usual loop over `named_parameters()`, which checks nothing and undoes"
        " nothing. Frostline's freeze also pins modes, clears gradients and records what the proof"
        " compares with. Medians of interleaved rounds.",
    )
    with torch.device("meta"):
        llama = Llama70B()
    rows = measure("Llama 70B, 723 tensors", llama, "layers", rounds=15)
    table(
        ["what", "ms", "target"],
        [
            [what, f"{seconds * 1e3:.2f}", _target(what, seconds, 0.05, "under 50 ms")]
            for what, seconds in rows
        ],
    )
    sizes = (10_000, 50_000, 100_000)
    growth = {count: dict(measure("", many_tensors(count), "layers", rounds=5)) for count in sizes}
    table(
        ["what", *(f"{count:,} tensors, ms" for count in sizes), "µs a tensor", "target"],
        [
            [
                what.removeprefix(": "),
                *(f"{growth[count][what] * 1e3:.0f}" for count in sizes),
                " / ".join(f"{growth[count][what] / count * 1e6:.2f}" for count in sizes),
                _target(what, growth[sizes[-1]][what], 1.0, "under 1 s"),
            ]
            for what in growth[sizes[0]]
        ],
    )


def _target(what: str, seconds: float, limit: float, words: str) -> str:
    return f"{words}: {verdict(seconds, limit)}" if "fl." in what else ""


if __name__ == "__main__":
    main()
