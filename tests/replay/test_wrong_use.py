"""Frozen weights that move, ids that are none, data that change: noticed, and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from replaying import HEAD, LAST_TWO, WIDTH, Net, Pairs, both, cross_entropy, net, run, steps
from torch import Tensor, nn
from torch.utils.data import DataLoader

import frostline as fl


def _loader(data: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(data or Pairs(40), **{"batch_size": 8, "shuffle": True, **options})


def _loop(change: Callable[[Any], object], *, batch: int = 0) -> Any:
    """Six epochs; ``change`` happens in the fourth, before the step of one of its batches."""

    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for epoch in range(6):
            if epoch == 3 and batch == 0:
                change(model)
            for number, given in enumerate(batches(loader)):
                if epoch == 3 and number == batch > 0:
                    change(model)
                optimizer.zero_grad()
                loss = cross_entropy(model, given)
                loss.backward()
                optimizer.step()
                yield loss.detach()

    return loop


def _doubled(model: Net) -> dict[str, Tensor]:
    return {name: tensor * 2 for name, tensor in model.blocks[0].state_dict().items()}


def _load(model: Any) -> None:
    model.blocks[0].load_state_dict(_doubled(model))


def _load_by_assignment(model: Any) -> None:
    model.blocks[0].load_state_dict(_doubled(model), assign=True)
    model.blocks[0].requires_grad_(False)


def _write_data(model: Any) -> None:
    model.blocks[0].fc1.weight.data.mul_(2)


def _write_by_numpy(model: Any) -> None:
    model.blocks[0].fc1.weight.detach().numpy()[:] *= 2


def _write_without_gradient(model: Any) -> None:
    with torch.no_grad():
        model.blocks[0].fc1.weight.mul_(2)


def _give_other_data(model: Any) -> None:
    weight = model.blocks[0].fc1.weight
    weight.data = weight.data * 2


def _thaw(model: Any) -> None:
    fl.unfreeze(model, "blocks.1", gradients="drop")


def _thaw_by_hand(model: Any) -> None:
    model.blocks[1].requires_grad_(True)


def _replace(model: Any) -> None:
    torch.manual_seed(3)
    model.blocks[0] = type(model.blocks[0])().requires_grad_(False).eval()


def _turn_gradients_off(model: Any) -> None:
    model.head.bias.requires_grad_(False)


# What happens to the model, and whether versions or flags tell at once, in the middle of an epoch.
_CHANGES: dict[str, Callable[[Any], object]] = {
    "load-state-dict": _load,
    "load-by-assignment": _load_by_assignment,
    "written-without-gradient": _write_without_gradient,
    "other-data": _give_other_data,
    "thawed": _thaw,
    "thawed-by-hand": _thaw_by_hand,
    "replaced": _replace,
    "a-parameter-of-the-head-frozen": _turn_gradients_off,
}
_BEHIND: dict[str, Callable[[Any], object]] = {
    "data-written": _write_data,
    "written-by-numpy": _write_by_numpy,
}


@pytest.mark.parametrize("inputs", ["load", "skip"])
@pytest.mark.parametrize("batch", [0, 2], ids=["between-epochs", "in-an-epoch"])
@pytest.mark.parametrize("name", _CHANGES)
def test_a_changed_model_is_never_replayed_as_it_was(name: str, batch: int, inputs: str) -> None:
    done = both(lambda: net(LAST_TWO), _loader, _loop(_CHANGES[name], batch=batch), inputs=inputs)
    assert done.replayer.declined is None
    assert done.counts[1] >= 15  # and it goes on with the new values


@pytest.mark.parametrize("inputs", ["load", "skip"])
@pytest.mark.parametrize("name", _BEHIND)
def test_what_is_written_behind_autograd_is_seen_in_the_next_epoch(name: str, inputs: str) -> None:
    both(lambda: net(LAST_TWO), _loader, _loop(_BEHIND[name]), inputs=inputs)


@pytest.mark.parametrize("inputs", ["load", "skip"])
@pytest.mark.parametrize("name", _BEHIND)
def test_what_is_written_behind_autograd_in_an_epoch_stops_the_run(name: str, inputs: str) -> None:
    """Steps may have been replayed with the old weights by then: that must not pass in silence."""
    with pytest.raises(fl.ReplayError, match=r"blocks\.0"):
        both(lambda: net(LAST_TWO), _loader, _loop(_BEHIND[name], batch=1), inputs=inputs)


def test_thawing_above_the_cut_stops_replay_at_the_next_batch() -> None:
    model, loader = net(LAST_TWO), _loader()
    counts = []
    for epoch in range(4):
        for number, batch in enumerate(fl.replay(model, loader)):
            if epoch == 2 and number == 2:
                fl.unfreeze(model, "blocks.0", gradients="drop")
            before = fl.replay(model, loader).replayer.stats.replayed
            cross_entropy(model, batch).backward()
            counts.append(fl.replay(model, loader).replayer.stats.replayed - before)
            if number == 2 and epoch == 2:
                assert model.blocks[0].fc1.weight.grad is not None
    assert counts == [0] * 5 + [1] * 5 + [1] * 2 + [0] * 8
    assert fl.replay(model, loader).replayer.declined is not None


def test_weights_that_keep_changing() -> None:
    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for _ in range(8):
            _write_without_gradient(model)
            for batch in batches(loader):
                optimizer.zero_grad()
                loss = cross_entropy(model, batch)
                loss.backward()
                optimizer.step()
                yield loss.detach()

    done = both(lambda: net(LAST_TWO), _loader, loop)
    assert "blocks.0.fc1.weight" in str(done.replayer.declined)
    assert "keeps changing" in str(done.replayer.declined)


# Data that change.


class _Changing(Pairs):
    scale = 1.0

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x * self.scale, y


def _with_changing_data(audit: float = 0.0, inputs: str = "load", workers: int = 0) -> Any:
    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for epoch in range(6):
            loader.dataset.scale = 1.0 if epoch < 3 else 2.0
            for batch in batches(loader):
                optimizer.zero_grad()
                loss = cross_entropy(model, batch)
                loss.backward()
                optimizer.step()
                yield loss.detach()

    return both(
        lambda: net(LAST_TWO),
        lambda: _loader(_Changing(40), num_workers=workers),
        loop,
        audit=audit,
        inputs=inputs,
    )


def test_data_that_change_are_computed_again() -> None:
    assert _with_changing_data().counts == (10, 20, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_audit_of_skipped_inputs_finds_data_that_changed(workers: int) -> None:
    with pytest.raises(fl.ReplayError, match=r"sample|data|audit"):
        _with_changing_data(audit=0.5, inputs="skip", workers=workers)


# Audits.


class _Scale:
    value = 1.0


class _OutsideWorld(nn.Module):
    """What it computes depends on something that nobody can see."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.ModuleDict({"deep": _Deep()}), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body["deep"](x))


def _outside() -> float:
    return _Scale.value


class _Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * _outside()


@pytest.mark.parametrize("inputs", ["load", "skip"])
@pytest.mark.parametrize("audit", [0.0, 1.0])
def test_an_audit_names_the_module_that_differs(
    audit: float, inputs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Scale, "value", 1.0)

    def make() -> nn.Module:
        torch.manual_seed(0)
        model = _OutsideWorld()
        fl.freeze(model, all_but="head")
        return model

    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for epoch in range(30):
            _Scale.value = 1.0 if epoch < 3 else 2.0
            for batch in batches(loader):
                yield cross_entropy(model, batch).detach()
                stats.append(batches(loader).replayer.stats.replayed)

    stats: list[int] = []
    with pytest.raises(fl.ReplayError, match=r"audit.*body\.deep"):
        run(make, _loader, loop, replayed=True, audit=audit, inputs=inputs)
    # At once, or at the 64th replay: the first ones that are audited anyhow.
    assert stats[-1] == (10 if audit else 63)


# The model moves.


def test_another_precision_is_another_model() -> None:
    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for epoch in range(6):
            kind = torch.float64 if epoch in (3, 4) else torch.float32
            model.to(kind)
            for x, y in batches(loader):
                optimizer.zero_grad()
                loss = cross_entropy(model, (x.to(kind), y))
                loss.backward()
                optimizer.step()
                yield loss.detach()

    done = both(lambda: net(LAST_TWO), _loader, loop, optimizer=torch.optim.SGD)
    assert done.counts[1] >= 10


class _Wrapper(nn.Module):
    """Like DistributedDataParallel, hands calls through."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) * 2


def test_a_wrapped_model() -> None:
    assert both(lambda: _Wrapper(net(LAST_TWO)), _loader).counts == (5, 10, 0)


def test_a_model_that_is_wrapped_for_the_loop_alone() -> None:
    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        wrapper = _Wrapper(model)
        return steps(wrapper, optimizer, loader, lambda given: batches(given), epochs=3)

    assert both(lambda: net(HEAD), _loader, loop).counts == (5, 10, 0)
