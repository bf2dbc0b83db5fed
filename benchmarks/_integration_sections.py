"""What the callbacks cost, and what their replay saves: a table for each framework."""

from __future__ import annotations

import gc
import importlib.metadata
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _integration_frameworks import FRAMEWORKS, hugging_face
from _integration_jobs import Run, Scale, features_of, fresh_vit, head_alone, same_losses
from _replay_jobs import images
from _report import interleave, median_ratio, table, verdict
from torch import nn

import frostline as fl
from frostline.integrations.huggingface import FrostlineCallback

HEAD = fl.Plan.all_but("classifier")
COST_EPOCHS = 6
"""Of which the first, in which a guard compares all there is, does not count as steps."""


class Sides:
    """Trainings by name, each run from a fresh copy in every round.

    Args:
        sides: name → one whole training.
        rounds: how often; one more before, that does not count.
    """

    def __init__(self, sides: dict[str, Callable[[], Run]], rounds: int) -> None:
        self.runs: dict[str, list[Run]] = {name: [] for name in sides}
        self._sides = sides
        self.whole = interleave(
            {name: partial(self._measure, name) for name in sides},
            rounds=rounds,
            warmup=1,
        )
        for kept in self.runs.values():
            del kept[0]
        self.steps = {name: [run.step for run in runs] for name, runs in self.runs.items()}

    def _measure(self, name: str) -> float:
        gc.collect()  # what an earlier side has left is not this one's to clear away
        run = self._sides[name]()
        self.runs[name].append(run)
        return run.whole

    def median(self, name: str, of: Callable[[Run], float]) -> float:
        """The median over the rounds."""
        return statistics.median(of(run) for run in self.runs[name])

    def losses(self, name: str, base: str) -> str:
        """Whether in every round both had the same losses."""
        found = {same_losses(*pair) for pair in zip(self.runs[name], self.runs[base], strict=True)}
        return ", ".join(sorted(found))


def in_framework(key: str, scale: Scale) -> None:
    """The callback's cost in a framework, then what its replay saves."""
    name, package, _, _ = FRAMEWORKS[key]
    print(f"## {name} ({package} {importlib.metadata.version(package)})\n")
    _cost(key, scale)
    _replay(key, scale)


def _cost(key: str, scale: Scale) -> None:
    _, _, train, callback = FRAMEWORKS[key]
    data = images(scale.cost_samples)
    rows = []
    for layers, width in ((scale.layers, 192), (2, 64)):
        model = fresh_vit(layers, width=width)
        by_hand = _frozen(fresh_vit(layers, width=width))

        def run(base: nn.Module, make: Callable[[], Any]) -> Callable[[], Run]:
            return lambda: train(base, data, COST_EPOCHS, make())

        sides = Sides(
            {
                "bare": run(by_hand, lambda: None),
                "again": run(by_hand, lambda: None),
                "callback, guard off": run(model, lambda: callback(HEAD, guard=False)),
                "callback": run(model, lambda: callback(HEAD)),
            },
            scale.rounds,
        )
        once = sides.median("bare", lambda found: found.once)
        for name in sides.runs:
            more = median_ratio(sides.steps, name, "bare") - 1
            rows.append(
                [
                    f"{layers} layers, width {width}",
                    name,
                    f"{sides.median(name, lambda found: found.step) * 1e3:.3f}",
                    f"{more:+.2%}",
                    f"{(sides.median(name, lambda found: found.once) - once) * 1e3:+.0f}",
                    sides.losses(name, "bare"),
                    f"at most +2 %: {verdict(more, 0.02)}" if name == "callback" else "",
                ]
            )
    print("What the callback adds.\n")
    columns = ["ViT", "side", "a step, ms", "more a step", "more once, ms", "losses", "target"]
    table(columns, rows)


def _replay(key: str, scale: Scale) -> None:
    _, _, train, callback = FRAMEWORKS[key]
    data = images(scale.samples)
    model = fresh_vit(scale.layers)
    by_hand = _frozen(fresh_vit(scale.layers))
    features, head = features_of(fresh_vit(scale.layers), data), head_alone(fresh_vit(scale.layers))
    sides = Sides(
        {
            "bare": lambda: train(by_hand, data, scale.epochs),
            "callback": lambda: train(model, data, scale.epochs, callback(HEAD)),
            "replayed": lambda: train(model, data, scale.epochs, callback(HEAD, replay=True)),
            "limit": lambda: train(head, features, scale.epochs),
        },
        scale.rounds,
    )
    print(
        "With replay. The limit is the framework's own loop: the same model, of which only the head"
        " is called, on features that were computed beforehand.\n"
    )
    rows = [
        _replay_row(sides, "bare", "bare", target=False),
        _replay_row(sides, "callback", "bare", target=False),
        _replay_row(sides, "replayed", "bare", target=True),
        [*_replay_row(sides, "limit", "bare", target=False)[:5], "", "", ""],
    ]
    table(_REPLAY_COLUMNS, rows)
    whole = median_ratio(sides.whole, "limit", "replayed")
    later = median_ratio(sides.steps, "limit", "replayed")
    print(
        f"Of the replayed run the framework's own loop is {whole:.0%}, of a later step {later:.0%};"
        " the rest is the first epoch, in which all is computed, and replay itself.\n"
    )


_REPLAY_COLUMNS = [
    "side",
    "all epochs, s",
    "times as fast",
    "a later step, ms",
    "times as fast",
    "replayed",
    "losses",
    "target",
]


def _replay_row(sides: Sides, name: str, base: str, *, target: bool) -> list[str]:
    faster = 1 / median_ratio(sides.whole, name, base)
    return [
        name,
        f"{sides.median(name, lambda found: found.whole):.2f}",
        f"{faster:.2f}",
        f"{sides.median(name, lambda found: found.step) * 1e3:.2f}",
        f"{1 / median_ratio(sides.steps, name, base):.2f}",
        sides.runs[name][-1].note,
        sides.losses(name, base),
        f"at least 3: {verdict(faster, 3.0, at_least=True)}" if target else "",
    ]


def lora(scale: Scale) -> None:
    """PEFT's adapters on the last blocks alone, in the Trainer; everything below is replayed."""
    version = importlib.metadata.version("peft")
    print(
        f"## LoRA (peft {version}) on the last block, in the Trainer\n\nRank 8 on query and value,"
        " dropout 0.05, and the head; no plan: what PEFT has frozen is held.\n"
    )
    data = images(scale.samples)
    model = _with_adapters(scale.layers)
    sides = Sides(
        {
            "bare": lambda: hugging_face(model, data, scale.epochs),
            "callback": lambda: hugging_face(model, data, scale.epochs, FrostlineCallback()),
            "replayed": lambda: hugging_face(
                model, data, scale.epochs, FrostlineCallback(replay=True)
            ),
        },
        scale.rounds,
    )
    rows = [_replay_row(sides, name, "bare", target=False)[:-1] for name in sides.runs]
    table(_REPLAY_COLUMNS[:-1], rows)


def _with_adapters(layers: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT 0.21 draws one from transformers 5.23
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        config = LoraConfig(
            r=8,
            lora_dropout=0.05,
            target_modules=["q_proj", "v_proj"],
            layers_to_transform=[layers - 1],
            modules_to_save=["classifier"],
        )
        return get_peft_model(fresh_vit(layers), config)


def _frozen(model: Any) -> nn.Module:
    model.vit.requires_grad_(False)
    frozen: nn.Module = model
    return frozen
