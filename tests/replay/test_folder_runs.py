"""Runs that find in a folder what earlier runs have recorded; and what they must not find."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from replaying import (
    CLASSES,
    HEAD,
    LAST_TWO,
    WIDTH,
    Block,
    Net,
    Pairs,
    Run,
    assert_same,
    both,
    freeze,
    net,
    run,
    steps,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from frostline.replay.store import ReplayWarning


def _loader(data: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(data or Pairs(40), **{"batch_size": 8, "shuffle": True, **options})


def _trained(
    folder: Path, make: Callable[[], nn.Module] = net, loader: Any = _loader, **options: Any
) -> Run:
    return run(make, loader, replayed=True, store=folder, **options)


def _epoch(*given: Any) -> Any:
    return steps(*given, epochs=1)


# What the next run may change: it replays from its first epoch.


def _other_head() -> nn.Module:
    model = net()
    torch.manual_seed(99)
    model.head = nn.Linear(WIDTH, CLASSES)
    return model


def _two_layers_of_head() -> nn.Module:
    model = net()
    torch.manual_seed(99)
    model.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    return model


def _more_dropout() -> nn.Module:
    model = net()
    model.drop.p = 0.7
    return model


def _frozen_by_hand() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    for block in model.blocks:
        block.drop.p = 0.0
    return model


_NEXT: dict[str, dict[str, Any]] = {
    "the-same": {},
    "another-head": {"make": _other_head},
    "a-deeper-head": {"make": _two_layers_of_head},
    "more-dropout-in-the-live-part": {"make": _more_dropout},
    "another-optimizer": {"optimizer": torch.optim.SGD},
    "another-order": {"loader": lambda: _loader(generator=torch.Generator().manual_seed(9))},
    "workers": {"loader": lambda: _loader(num_workers=2)},
    "skip": {"inputs": "skip"},
    "audits": {"audit": 1.0},
}


@pytest.mark.parametrize("name", _NEXT)
def test_the_next_run_replays_from_its_first_epoch(name: str, tmp_path: Path) -> None:
    assert _trained(tmp_path).counts == (5, 10, 0)
    options = {"make": net, "loader": _loader, **_NEXT[name]}
    make, loader = options.pop("make"), options.pop("loader")
    plain = run(
        make, loader, _epoch, replayed=False, optimizer=options.get("optimizer", torch.optim.AdamW)
    )
    again = run(make, loader, _epoch, replayed=True, store=tmp_path, **options)
    assert_same(plain, again)
    # The folder says that the cut was proven; the first replay is compared all the same.
    assert again.counts == (0, 5, 0)
    assert again.replayer.stats.compared == (5 if name == "audits" else 1)


@pytest.mark.slow
def test_fresh_processes_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from replaying import *\n"
        "torch.set_num_threads(1)\n"
        "make = lambda: net(HEAD)\n"
        "loader = lambda: DataLoader(Pairs(40), batch_size=8, shuffle=True)\n"
        "plain = run(make, loader, replayed=False)\n"
        "done = run(make, loader, replayed=True, store=sys.argv[1])\n"
        "assert_same(plain, done)\n"
        "print(*done.counts)\n"
    )
    tests = Path(__file__).parent.parent
    told = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=tests,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert told == [["5", "10", "0"], ["0", "15", "0"]]


# What the next run must not find.


def _other_weights() -> nn.Module:
    return net(seed=5)


def _one_weight_differs() -> nn.Module:
    model = net()
    with torch.no_grad():
        model.blocks[0].fc1.weight[0, 0] = torch.nextafter(
            model.blocks[0].fc1.weight[0, 0], torch.tensor(9.0)
        )
    return model


def _another_epsilon() -> nn.Module:
    model = net()
    for block in model.blocks:
        block.norm.eps = 1e-2
    return model


class _TwiceAsMuch(Block):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _another_class() -> nn.Module:
    model = net()
    for block in model.blocks:
        block.__class__ = _TwiceAsMuch
    return model


def _another_precision() -> nn.Module:
    return net().double()


def _another_cut() -> nn.Module:
    return net(LAST_TWO)


def _in_bfloat16(model: Any, batch: Any) -> Tensor:
    x, y = batch
    with torch.autocast("cpu", torch.bfloat16):
        return functional.cross_entropy(model(x).float(), y)


def _as_double(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return functional.cross_entropy(model(x.double()), y)


_OTHERS: dict[str, dict[str, Any]] = {
    "other-weights": {"make": _other_weights},
    "one-bit-of-a-weight": {"make": _one_weight_differs},
    "another-epsilon": {"make": _another_epsilon},
    "another-class": {"make": _another_class},
    "another-precision": {"make": _another_precision, "loss_of": _as_double},
    "another-cut": {"make": _another_cut},
    "autocast": {"loss_of": _in_bfloat16},
    "other-data": {"loader": lambda: _loader(Pairs(40, seed=77))},
    "another-batch-size": {"loader": lambda: _loader(batch_size=5)},
}


@pytest.mark.parametrize("name", _OTHERS)
def test_other_runs_find_nothing(name: str, tmp_path: Path) -> None:
    _trained(tmp_path)
    options = dict(_OTHERS[name])
    loss_of = options.pop("loss_of", None)
    loop = steps if loss_of is None else (lambda *given: steps(*given, loss_of=loss_of))
    done = both(options.get("make", net), options.get("loader", _loader), loop, store=tmp_path)
    assert done.replayer.declined is None
    batches = len(done.replays[0])
    assert done.counts[0] >= batches  # the whole first epoch was computed
    assert done.counts[1] >= batches


# Settings that no fingerprint of weights shows. A limit matters for one sample alone, so that
# two mixed batches need not show it either.


class _Limited(nn.Module):
    """Takes a limit from wherever ``limit`` says."""

    def __init__(self, limit: Callable[[Any], Any], **held: Any) -> None:
        super().__init__()
        self.fc, self.limit = nn.Linear(WIDTH, WIDTH), limit
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.minimum(x, torch.as_tensor(self.limit(self), dtype=x.dtype)))


class _Outer(nn.Module):
    """Scales between its frozen modules by a number of its own."""

    def __init__(self, body: nn.Module, limit: float = 99.0) -> None:
        super().__init__()
        self.body, self.top, self.head = body, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.top(self.body(x).clamp(max=self.limit)))


def _limited(limit: Any, held: Callable[[float], dict[str, Any]]) -> Any:
    def make(value: float) -> nn.Module:
        return _Outer(_Limited(limit, **held(value)))

    return make


def _closing_over(value: float) -> nn.Module:
    return _Outer(_Limited(lambda body: value))


def _with_a_function(value: float) -> nn.Module:
    return _Outer(_Limited(_high if value > 50 else _low))


def _high(body: Any) -> float:
    return 99.0


def _low(body: Any) -> float:
    return 5.0


def _around(value: float) -> nn.Module:
    return _Outer(nn.Linear(WIDTH, WIDTH), limit=0.0 + value if value > 50 else 2.5)


_SETTINGS: dict[str, Callable[[float], nn.Module]] = {
    "number": _limited(lambda b: b.held, lambda v: {"held": v}),
    "dict": _limited(lambda b: b.held["a"], lambda v: {"held": {"a": v}}),
    "list": _limited(lambda b: b.held[0], lambda v: {"held": [v]}),
    "nested": _limited(lambda b: b.held["a"][0], lambda v: {"held": {"a": [v]}}),
    "tensor": _limited(lambda b: b.held, lambda v: {"held": torch.tensor(v)}),
    "array": _limited(lambda b: b.held[0].item(), lambda v: {"held": torch.tensor([v]).numpy()}),
    "closure": _closing_over,
    "function": _with_a_function,
    "around": _around,
}


@pytest.mark.parametrize("name", _SETTINGS)
def test_other_settings_are_another_model(name: str, tmp_path: Path) -> None:
    data = Pairs(48)
    data.x[40:] = data.x[40:].abs() * 3 + 6  # only the last batch comes to the limit

    def made(value: float) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            torch.manual_seed(0)
            model = _SETTINGS[name](value)
            freeze(model, HEAD)
            return model

        return make

    def loader() -> DataLoader[Any]:
        return _loader(data, shuffle=False)

    run(made(99.0), loader, replayed=True, store=tmp_path)
    both(made(5.0), loader, store=tmp_path)
    both(made(99.0), loader, store=tmp_path)


# Folders with gaps.


def test_a_model_with_the_same_beginning(tmp_path: Path) -> None:
    class _Scaled(Net):
        def encode(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x) * 1.0
            return x

    def make() -> nn.Module:
        torch.manual_seed(0)
        model = _Scaled()
        freeze(model, HEAD)
        return model

    _trained(tmp_path)
    done = both(make, _loader, store=tmp_path)
    assert done.replayer.declined is None
    assert done.counts[1] >= 5


def test_half_of_the_data_known(tmp_path: Path) -> None:
    _trained(tmp_path, loader=lambda: _loader(Pairs(40), sampler=range(16), shuffle=False))
    done = both(net, _loader, store=tmp_path)
    assert done.replayer.declined is None
    assert done.counts[1] >= 10


@pytest.mark.parametrize("name", ["deleted", "truncated", "altered"])
def test_a_damaged_folder_is_computed_anew(name: str, tmp_path: Path) -> None:
    _trained(tmp_path)
    files = sorted((p for p in tmp_path.rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size)
    assert files
    for path in files[:2]:
        if name == "deleted":
            path.unlink()
        elif name == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            content = bytearray(path.read_bytes())
            for place in range(len(content) // 3, len(content), 7):
                content[place] ^= 1
            path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = both(net, _loader, store=tmp_path)
    assert done.counts[1] >= 5


def test_two_models_in_one_folder(tmp_path: Path) -> None:
    for _ in range(2):
        for seed in (0, 5):
            both(lambda seed=seed: net(seed=seed), _loader, store=tmp_path)


def test_a_full_disk_degrades_with_one_warning(tmp_path: Path) -> None:
    plain = run(net, _loader, replayed=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with mock.patch("os.write", _no_room):
            done = _trained(tmp_path)
    assert_same(plain, done)
    assert [w.category for w in caught] == [ReplayWarning], [str(w.message) for w in caught]


def _no_room(*given: Any) -> int:
    raise OSError(28, "No space left on device")


def test_a_budget_for_a_folder(tmp_path: Path) -> None:
    plain = run(net, _loader, replayed=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = _trained(tmp_path, budget=2000)
    assert_same(plain, done)
    assert len(caught) == 1
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) <= 2000
