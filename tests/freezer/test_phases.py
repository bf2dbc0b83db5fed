"""How many phases a run will have is told beforehand, where torch.compile would stop compiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from scheduling import busy
from torch import _dynamo, nn
from torch._dynamo.utils import counters
from zoo import Net

import frostline as fl
from frostline.freezer.phases import foreseen
from frostline.schedules import Progress, layout_of, registry


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    _dynamo.reset()
    counters.clear()
    yield
    _dynamo.reset()


def beginning(name: str, *, steps: int = 24) -> Progress:
    layout = layout_of(Net(4), grain=registry[name].traits.grain)
    return Progress(
        at="start", layout=layout, trains=layout.names, total_steps=steps, steps_per_epoch=6
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("explicit", 4, id="a stall among them"),
        pytest.param("gradual-unfreeze", 4, id="an epoch each"),
        pytest.param("lpft", 2, id="at the latest"),
        pytest.param("badam", 5, id="a block each, and the stem"),
        pytest.param("autofreeze", 1, id="by gradients, all at first"),
        pytest.param("surgical", 1, id="always the same"),
    ],
)
def test_the_phases_of_a_run(name: str, count: int) -> None:
    assert len(foreseen(busy(name), beginning(name))) == count


def freezer(
    compiled: Callable[[nn.Module], nn.Module], *, schedule: object = "gradual-unfreeze"
) -> fl.Freezer:
    model = compiled(Net(4))
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.01)
    return fl.Freezer(model, optimizer, schedule=schedule, total_steps=24, steps_per_epoch=4)


def run(freezer: fl.Freezer) -> None:
    for _ in range(24):
        freezer.optimizer.zero_grad()
        freezer.model(torch.randn(12, 8)).sum().backward()
        freezer.optimizer.step()
        freezer.step()


def whole(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def head_alone(model: nn.Module) -> nn.Module:
    model.head = torch.compile(model.head, backend="eager")
    return model


def by_layers(model: nn.Module) -> nn.Module:
    for layer in model.layers:  # type: ignore[union-attr]
        layer.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("compiled", "limit", "note"),
    [
        pytest.param(
            whole, 5, "the model is compiled, and what trains in it takes 6 forms", id="6"
        ),
        pytest.param(in_place, 5, "recompile_limit = 12", id="in place"),
        pytest.param(whole, 6, None, id="the limit will do"),
        pytest.param(head_alone, 1, None, id="always trains"),
        pytest.param(by_layers, 2, None, id="frozen or not"),
        pytest.param(by_layers, 1, "layers.0 is compiled, and what trains in it", id="one form"),
        pytest.param(lambda model: model, 1, None, id="not compiled"),
    ],
)
def test_a_freezer_says_what_to_set(
    compiled: Callable[[nn.Module], nn.Module], limit: int, note: str | None
) -> None:
    with _dynamo.config.patch(recompile_limit=limit):
        notes = [event.why for event in freezer(compiled).events if event.kind == "note"]
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


def test_so_often_is_it_compiled() -> None:
    with _dynamo.config.patch(recompile_limit=6):
        run(freezer(whole))
    assert counters["stats"]["unique_graphs"] == 6
