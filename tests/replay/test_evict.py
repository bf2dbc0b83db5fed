"""``evict=True``: frozen tensors leave the memory once they are not needed, and come back."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from replaying import CLASSES, HEAD, Pairs, assert_same, both, cross_entropy, run, steps
from torch import Tensor, nn
from torch.utils.data import DataLoader

import frostline as fl

WIDTH = 64  # tensors below a page stay where they are


class _Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.third, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second, self.third):
            x = torch.tanh(layer(x))
        return self.head(x)


def _model(trains: Any = HEAD) -> nn.Module:
    torch.manual_seed(0)
    model = _Wide()
    fl.freeze(model, all_but=trains)
    return model


def _loader() -> DataLoader[Any]:
    return DataLoader(Pairs(40), batch_size=8, shuffle=True)


def _is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor's memory is a file's, as the system tells it."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5) if line.count(" ") > 4 else (line.split()[0], "")
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return "frostline-evicted" in name
    return False


linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux")


def _trained(model: nn.Module, loader: Any, epochs: int = 3, **options: Any) -> Any:
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=1e-2)
    for _ in range(epochs):
        for batch in fl.replay(model, loader, evict=True, **options):
            optimizer.zero_grad()
            cross_entropy(model, batch).backward()
            optimizer.step()
    return fl.replay(model, loader, evict=True, **options).replayer


@linux
@pytest.mark.parametrize("trains", [HEAD, ("third", "head")], ids=["head", "two"])
def test_what_is_not_needed_lies_in_a_file(trains: Any) -> None:
    model = _model(trains)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not _is_mapped(model.second.weight)
    _trained(model, _loader())
    assert _is_mapped(model.second.weight)
    assert _is_mapped(model.third.weight) == (trains == HEAD)
    assert not _is_mapped(model.head.weight)
    assert model.second.weight.is_contiguous()
    for name in ("first.weight", "first.bias", "second.weight", "second.bias"):
        assert torch.equal(model.state_dict()[name], before[name])


@linux
def test_nothing_leaves_before_everything_is_recorded() -> None:
    model, loader = _model(), _loader()
    for _ in fl.replay(model, loader, evict=True):
        assert not _is_mapped(model.second.weight)
    assert not _is_mapped(model.second.weight)


@linux
def test_files_go_with_the_model() -> None:
    model = _model()
    _trained(model, _loader())
    maps = Path("/proc/self/maps")
    assert "frostline-evicted" in maps.read_text()
    paths = {
        Path(line.split(maxsplit=5)[5].removesuffix(" (deleted)"))
        for line in maps.read_text().splitlines()
        if "frostline-evicted" in line
    }
    del model
    gc.collect()
    assert not [path for path in paths if path.exists()]


@pytest.mark.parametrize("options", [{}, {"inputs": "skip"}, {"audit": 0.5}], ids=str)
@pytest.mark.parametrize("trains", [HEAD, ("third", "head")], ids=["head", "two"])
def test_the_bits_are_the_same(trains: Any, options: dict[str, Any]) -> None:
    plain = run(lambda: _model(trains), _loader, lambda *g: steps(*g, epochs=6), replayed=False)
    done = run(
        lambda: _model(trains),
        _loader,
        lambda *g: steps(*g, epochs=6),
        replayed=True,
        evict=True,
        **options,
    )
    assert_same(plain, done)
    assert done.counts == (5, 25, 0)


def test_evaluation_copies_and_files_work_afterwards(tmp_path: Path) -> None:
    plain = run(_model, _loader, replayed=False).model
    model = run(_model, _loader, replayed=True, evict=True).model
    x = torch.randn(11, 16)
    expected = plain.eval()(x)
    assert torch.equal(model.eval()(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    torch.save(model.state_dict(), tmp_path / "weights")
    other = _Wide().eval()
    other.load_state_dict(torch.load(tmp_path / "weights"))
    assert torch.equal(other(x), expected)
    torch.save(model, tmp_path / "model")
    assert torch.equal(torch.load(tmp_path / "model", weights_only=False)(x), expected)


def test_a_copy_outlives_the_model() -> None:
    model = _model()
    _trained(model, _loader())
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    expected = {name: tensor.clone() for name, tensor in state.items()}
    del model
    gc.collect()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def _epochs(change: Any) -> Any:
    def loop(model: Any, optimizer: Any, loader: Any, batches: Any) -> Iterator[Tensor]:
        for epoch in range(7):
            if epoch == 4:
                change(model, optimizer)
            yield from steps(model, optimizer, loader, batches, epochs=1)

    return loop


def _thaw(model: Any, optimizer: Any) -> None:
    fl.unfreeze(model, "second", gradients="drop")
    fl.sync(model, optimizer)


def _thaw_all(model: Any, optimizer: Any) -> None:
    fl.unfreeze(model, "**", gradients="drop")
    fl.sync(model, optimizer)


def _load(model: Any, optimizer: Any) -> None:
    model.second.load_state_dict({k: v * 2 for k, v in model.second.state_dict().items()})


def _train_elsewhere(model: Any, optimizer: Any) -> None:
    """A step that needs the whole model, outside of replay."""
    loss = model(torch.ones(4, 16)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("change", [_thaw, _thaw_all, _load, _train_elsewhere])
def test_changes_after_letting_go(change: Any) -> None:
    done = both(_model, _loader, _epochs(change), evict=True)
    assert done.counts[1] >= 10


@linux
def test_thawed_tensors_are_in_memory_and_train() -> None:
    model, loader = _model(), _loader()
    _trained(model, loader)
    fl.unfreeze(model, "second", gradients="drop")
    before = model.second.weight.detach().clone()
    _trained(model, loader)
    assert not torch.equal(model.second.weight, before)
    assert not _is_mapped(model.second.weight)


def test_tied_and_shared_tensors_stay_where_live_code_uses_them() -> None:
    class _Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.body = nn.Embedding(50, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.scale = nn.Linear(WIDTH, WIDTH)
            self.out = nn.Linear(WIDTH, 50, bias=False)
            self.out.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            ids = (x[:, :1].abs() * 10).long().clamp(0, 49)[:, 0]
            return self.out(self.scale(torch.tanh(self.body(self.words(ids)))))

    def make() -> nn.Module:
        torch.manual_seed(0)
        model = _Tied()
        fl.freeze(model, all_but="scale")
        return model

    done = both(make, _loader, lambda *given: steps(*given, epochs=5), evict=True)
    assert done.counts[1] == 20
    assert not _is_mapped(done.model.words.weight)
    assert done.model.out.weight is done.model.words.weight
