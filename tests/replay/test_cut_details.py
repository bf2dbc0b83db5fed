"""What a cut says besides: sources, writes, exclusions; and that tracing leaves nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cutting import WIDTH, Wired, body, cut_of, linear, sequential, told, trained
from torch import Tensor, nn

import frostline as fl
from frostline.replay import trace as tracing
from frostline.replay.cut import Cut, find_cut
from frostline.replay.liveness import Exclusions
from frostline.replay.trace import trace


def sources(cut: Cut) -> dict[str, list[str]]:
    return {str(p.call.place): [source.kind for source in p.sources] for p in cut.planned}


def test_where_arguments_come_from() -> None:
    def wiring(model: Any, x: Tensor) -> Tensor:
        first = model.a(x)
        second = model.b(first)
        third = model.c(second * model.scale)
        return model.head(third + model.d(model.scale.expand(32, -1)))

    modules = {name: linear() for name in "abcd"}
    cut = cut_of(trained(Wired(wiring, **modules, head=linear())))
    assert sources(cut) == {"a": ["content"], "b": ["call"], "c": ["blind"], "d": ["constant"]}
    assert [p.can_rerun for p in cut.planned] == [True, False, False, True]
    assert [p.varies for p in cut.planned] == [(True,), (True,), (True,), (False,)]
    assert cut.glue_tensors == {"scale"}


def test_what_is_computed_from_kept_values_can_be_looked_at() -> None:
    def kept(model: Any, x: Tensor) -> Tensor:
        first = model.a(x)
        return model.head(first) + model.b(first.tanh())

    def skipped(model: Any, x: Tensor) -> Tensor:
        return model.head(model.b(model.a(x).tanh()))

    found = [
        sources(cut_of(trained(Wired(wiring, a=linear(), b=linear(), head=linear()))))
        for wiring in (kept, skipped)
    ]
    assert found == [{"a": ["content"], "b": ["content"]}, {"a": ["content"], "b": ["blind"]}]


def test_in_place() -> None:
    cut = cut_of(sequential(linear(), nn.ReLU(inplace=True), linear(), trains="2"))
    assert [planned.mutates for planned in cut.planned] == [False, True]

    def adds(model: Any, x: Tensor) -> Tensor:
        first = model.a(x)
        first.add_(1)
        return model.head(first)

    between = cut_of(trained(Wired(adds, a=linear(), head=linear())))
    assert [planned.written for planned in between.planned] == [frozenset({0})]
    assert told(between) == {"a": "kept"}


def test_after_something_live() -> None:
    model = trained(
        Wired(lambda m, x: m.a(x) + m.head(x) + m.b(x), a=linear(), b=linear(), head=linear())
    )
    assert [planned.after_live for planned in cut_of(model).planned] == [False, True]


def test_what_an_opaque_object_of_the_output_lacks() -> None:
    def wiring(model: Any, x: Tensor, inside: str) -> Any:
        first = model.a(x)
        return model.head(first), SimpleNamespace(held=first if inside == "frozen" else x)

    model = trained(Wired(wiring, a=linear(), head=linear()))
    assert cut_of(model, torch.randn(32, WIDTH), "frozen").hides
    assert not cut_of(model, torch.randn(32, WIDTH), "input").hides


def test_calls_that_were_found_not_to_be_whole() -> None:
    model = sequential(nn.Sequential(linear(), linear()), linear(), trains="1")
    cut = cut_of(model, exclusions=Exclusions(split={1: "it looks across the batch"}))
    assert told(cut) == {"0.0": "skipped", "0.1": "kept"}
    assert {str(p): why for p, why in cut.refused.items()} == {"0": "it looks across the batch"}


def test_values_that_were_found_to_vary() -> None:
    model = sequential(linear(), linear(), linear(), trains="2")
    graph = trace(model, "", model.forward, (torch.randn(32, WIDTH),), {})
    (first,) = graph.calls[1].results
    cut = find_cut(graph, Exclusions(varying={first: "it depends on its batch-mates"}))
    assert told(cut) == {}
    # The second one takes what varies, so it is not the one to blame.
    assert {str(p): why for p, why in cut.refused.items()} == {"0": "it depends on its batch-mates"}


def test_rounding_may_be_accepted() -> None:
    model = trained(body(lambda m, x: m.fc(x) + (x > 0).nonzero().sum()))
    assert told(cut_of(model, exclusions=Exclusions(accepts_rounding=True))) == {"body": "kept"}


def test_a_batch_that_does_not_fill_the_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_tanh(func: Any, *_: Any) -> bool:
        return func is torch.ops.aten.tanh.default

    monkeypatch.setattr(tracing, "differs_at_the_end", is_tanh)
    cut = cut_of(sequential(linear(), nn.Tanh(), linear(), linear(), trains="3"))
    assert told(cut) == {"0": "kept"}
    assert {str(place): why for place, why in cut.refused.items()} == {
        "1": "the batch does not fill the processor's registers (tanh), so that the last sample is"
        " rounded in another way; take a batch size that is a multiple of 32"
    }


def test_pinned_modules_carry_no_foreign_hook() -> None:
    model = nn.Sequential(linear(), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5), linear())
    fl.freeze(model, all_but="3", gradients="drop")
    model.train()
    assert told(cut_of(model)).get("1") in ("kept", "skipped")


def test_tracing_leaves_no_trace() -> None:
    model = sequential(linear(), nn.ReLU(inplace=True), linear(), trains="2")
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    cut_of(model)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert Tensor.tolist is torch._C.TensorBase.tolist
    assert Tensor.numpy is torch._C.TensorBase.numpy
