"""Signals, against what they are said to be, computed by hand."""

from __future__ import annotations

import pytest
import torch
from scheduling import batch
from torch import nn
from zoo import Net

import frostline as fl
from frostline.errors import ScheduleError
from frostline.freezer.scene import set_scene
from frostline.freezer.signals import SIGNALS, SignalBoard
from frostline.freezer.similarity import plasticity
from frostline.schedules import layout_of


class Bench:
    def __init__(self, *names, trains=None):
        torch.manual_seed(0)
        self.model = Net(2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.board = SignalBoard(self.optimizer)
        layout = layout_of(self.model)
        self.scene = set_scene(self.model, layout, trains or layout.names)
        self.names = frozenset(names)
        self.board.arm(self.names, self.scene)

    def step(self, seed=0):
        inputs, targets = batch(seed)
        torch.manual_seed(seed)  # dropout
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(inputs), targets).backward()
        gradients = {n: p.grad.clone() for n, p in self.model.named_parameters()}
        before = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.optimizer.step()
        self.optimizer.zero_grad()  # the loop may clear them before the freezer looks
        return gradients, before


def of(unit, tensors):
    return [tensor for name, tensor in tensors.items() if name.startswith(f"{unit}.")]


def test_gradient_norms() -> None:
    bench = Bench("gradient_norms", "relative_gradients")
    gradients, weights = bench.step()
    norm = torch.cat([g.flatten() for g in of("layers.1", gradients)]).norm()
    weight = torch.cat([w.flatten() for w in of("layers.1", weights)]).norm()
    readings = bench.board.readings()
    assert readings["gradient_norms"]["layers.1"] == pytest.approx(float(norm))
    assert readings["relative_gradients"]["layers.1"] == pytest.approx(float(norm / weight))
    assert set(readings["gradient_norms"]) == {"stem", "layers.0", "layers.1", "head"}


@pytest.mark.parametrize("named", [False, True], ids=["by position", "by name"])
def test_gradients_that_a_closure_computes(named: bool) -> None:
    bench = Bench("gradient_norms")
    bench.step(seed=1)  # its gradients are not those of the step that counts
    inputs, targets = batch(2)

    def closure():
        bench.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(bench.model(inputs), targets)
        loss.backward()
        closure.gradients = [p.grad.flatten().clone() for p in bench.model.head.parameters()]
        return loss

    loss = bench.optimizer.step(closure=closure) if named else bench.optimizer.step(closure)
    assert loss.requires_grad
    norm = torch.cat(closure.gradients).norm()
    assert bench.board.readings()["gradient_norms"]["head"] == pytest.approx(float(norm))


def test_a_weight_of_zeros_has_no_ratio() -> None:
    bench = Bench("relative_gradients")
    nn.init.zeros_(bench.model.head.weight)
    nn.init.zeros_(bench.model.head.bias)
    bench.step()
    assert "head" not in bench.board.readings()["relative_gradients"]


def test_accumulated_gradients_are_summed_before_their_absolute_values_are() -> None:
    bench = Bench("accumulated_gradients")
    (first, _), (second, _) = bench.step(0), bench.step(1)
    sums = [a + b for a, b in zip(of("stem", first), of("stem", second), strict=True)]
    expected = sum(float(total.abs().sum()) for total in sums)
    assert bench.board.readings()["accumulated_gradients"]["stem"] == pytest.approx(expected)
    bench.board.restart(frozenset({"accumulated_gradients"}))
    third, _ = bench.step(2)
    alone = sum(float(g.abs().sum()) for g in of("stem", third))
    assert bench.board.readings()["accumulated_gradients"]["stem"] == pytest.approx(alone)


def test_weight_change_goes_back_to_the_restart() -> None:
    bench = Bench("weight_change")
    _, start = bench.step(0)
    bench.step(1)
    change = bench.board.readings()["weight_change"]["head"]
    now = dict(bench.model.named_parameters())
    expected = torch.cat([(now[n].detach() - w).flatten() for n, w in start.items() if "head" in n])
    assert torch.equal(change, expected)
    bench.board.restart(frozenset({"weight_change"}))
    bench.board.arm(bench.names, bench.scene)
    assert not bench.board.readings()["weight_change"]["head"].any()


def test_similarity_is_of_the_lowest_block_that_trains() -> None:
    trains = frozenset({"layers.1", "head"})
    bench = Bench("similarity", trains=trains)
    inputs = []
    bench.model.layers[1].register_forward_pre_hook(lambda m, args: inputs.append(args[0].detach()))
    snapshot = {n: t.clone() for n, t in bench.model.layers[1].state_dict().items()}
    bench.step()
    after = torch.get_rng_state()
    statistics = bench.model.layers[1].norm.running_mean.clone()
    reading = bench.board.readings()["similarity"]
    # Nothing moved: no statistic, no mode, no random number, no hook of ours left.
    assert torch.equal(bench.model.layers[1].norm.running_mean, statistics)
    assert bench.model.layers[1].norm.training
    assert torch.equal(torch.get_rng_state(), after)
    assert len(bench.model.layers[1]._forward_pre_hooks) == 1
    block = bench.model.layers[1].eval()
    with torch.no_grad():
        now = block(inputs[0])
        block.load_state_dict(snapshot)
        then = block(inputs[0])
    assert reading == {"layers.1": plasticity(now, then)}
    assert reading["layers.1"] > 0


def test_similarity_of_a_block_that_was_not_called() -> None:
    assert Bench("similarity").board.readings()["similarity"] == {}


def test_plasticity_of_alike_outputs_is_nothing_whatever_their_scale() -> None:
    outputs = torch.randn(8, 3, 5)
    assert plasticity(outputs, 2 * outputs) == pytest.approx(0, abs=1e-12)
    assert plasticity(outputs, torch.randn(8, 3, 5)) > 0


def test_nothing_is_taken_unless_asked() -> None:
    bench = Bench()
    bench.step()
    assert dict(bench.board.readings()) == {}
    assert bench.board.state() == {}


def test_a_reading_is_computed_once_and_only_when_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench("gradient_norms")
    bench.step()
    calls = []
    monkeypatch.setattr(bench.board, "_read", lambda name: calls.append(name) or {})
    readings = bench.board.readings()
    assert calls == []
    assert len(readings) == 1
    readings["gradient_norms"]
    readings["gradient_norms"]
    assert calls == ["gradient_norms"]


def test_an_unknown_signal_is_named() -> None:
    with pytest.raises(ScheduleError, match=r"'gradient_norm'.*'gradient_norms'"):
        Bench("gradient_norm")


@pytest.mark.parametrize("name", sorted(SIGNALS))
def test_a_signal_goes_on_from_its_saved_state(name: str) -> None:
    straight, saved = Bench(name), Bench(name)
    straight.step(0)
    saved.step(0)
    again = Bench(name)
    again.model.load_state_dict(saved.model.state_dict())
    again.board.load(saved.board.state())
    for bench in (straight, again):
        bench.board.arm(bench.names, bench.scene)
        bench.step(1)
    one, other = straight.board.readings()[name], again.board.readings()[name]
    assert one.keys() == other.keys()
    assert one
    prints = [{u: fl.fingerprint(torch.as_tensor(v)) for u, v in r.items()} for r in (one, other)]
    assert prints[0] == prints[1]
