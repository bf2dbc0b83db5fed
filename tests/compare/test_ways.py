from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frostline.compare.comparison import WAYS, Comparison, Way
from frostline.compare.ways import Experiment, compare_ways
from frostline.errors import ConfigError, OptimizerError, PlanError, SelectorError

Batch = tuple[Tensor, Tensor]


class Tutorial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 4)
        self.fc2 = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu())


class WithNorm(nn.Module):
    """A part to freeze that has statistics and dropout, and one to train that has statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5))
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8, bias=False)
        self.again = nn.Linear(8, 8, bias=False)
        self.again.weight = self.inner.weight
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.inner(x).relu()))


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def batches(count: int = 10) -> list[Batch]:
    return [(torch.randn(3, 8), torch.randint(0, 10, (3,))) for _ in range(count)]


def run(model: nn.Module, freeze: str, **options: Any) -> Comparison:
    return compare_ways(
        Experiment(
            model=model,
            batches=options.pop("batches", None) or batches(),
            loss=cross_entropy,
            freeze=freeze,
            repeats=1,
            threads=1,
            **options,
        )
    )


def moved(found: Comparison, way: Way) -> set[str]:
    return {name for name, amount in found[way].changed.items() if amount != 0.0}


def test_the_tutorial() -> None:
    found = run(Tutorial(), "fc1")
    first, last = {"fc1.weight", "fc1.bias"}, {"fc2.weight", "fc2.bias"}
    assert [result.way for result in found.ways] == ["none", "grad", "optimizer", "best", "replay"]
    assert {way: moved(found, way) for way in WAYS} == {
        "none": first | last,
        "grad": last,
        "optimizer": last,
        "best": last,
        "replay": last,
    }
    trains = dict.fromkeys(("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"), True)
    frozen = {**trains, "fc1.weight": False, "fc1.bias": False}
    assert [found[way].requires_grad for way in WAYS] == [trains, frozen, trains, frozen, frozen]
    assert [found[way].gradient_bytes for way in WAYS] == [344, 200, 344, 200, 200]
    assert [found[way].leftover_gradient_bytes for way in WAYS] == [0, 0, 144, 0, 0]
    assert [found[way].optimizer_state_bytes for way in WAYS] == [0] * 5
    # Logs 3x10, targets, the ReLU's output 3x4, a count; with fc1 in the graph its input 3x8 too.
    kept = 120 + 24 + 48 + 4
    expected = [kept + 96, kept, kept + 96, kept, kept]
    assert [found[way].activation_bytes for way in WAYS] == expected
    assert (found.frozen, found.trained) == (("fc1.weight", "fc1.bias"), tuple(sorted(last))[::-1])
    assert found.frozen_buffers == ()
    assert found.steps == 10


def test_all_ways_train_the_rest_alike() -> None:
    found = run(Tutorial(), "fc1")
    amounts = [found[way].changed["fc2.weight"] for way in ("grad", "optimizer", "best")]
    assert len(set(amounts)) == 1
    assert amounts[0] != found["none"].changed["fc2.weight"]


def test_changes_are_those_of_a_loop_written_by_hand() -> None:
    model, data = Tutorial(), batches()
    found = run(model, "fc1", batches=data, steps=12)
    mine = copy.deepcopy(model)
    optimizer = torch.optim.SGD(mine.parameters(), lr=1e-2)
    for x, y in [*data, *data[:2]]:
        optimizer.zero_grad()
        F.cross_entropy(mine(x), y).backward()
        optimizer.step()
    for (name, before), now in zip(model.named_parameters(), mine.parameters(), strict=True):
        expected = float((now.double() - before.double()).detach().abs().max())
        assert found["none"].changed[name] == expected


@pytest.mark.parametrize(
    ("name", "options", "expected", "late"),
    [
        # Two moments and a 4-byte counter for each tensor: 86 weights in 4, or 50 in 2.
        pytest.param("AdamW", {"lr": 1e-3}, [704, 408, 408, 408], 704, id="adamw"),
        pytest.param(
            "SGD", {"lr": 1e-3, "momentum": 0.9}, [344, 200, 200, 200], 344, id="momentum"
        ),
        pytest.param("SGD", {"lr": 1e-3}, [0, 0, 0, 0], 0, id="no-state"),
    ],
)
def test_way_one_and_best_hold_the_same_state_unless_the_freeze_is_late(
    name: str, options: dict[str, float], expected: list[int], late: int
) -> None:
    found = run(Tutorial(), "fc1", optimizer=getattr(torch.optim, name), options=options)
    assert [found[way].optimizer_state_bytes for way in WAYS] == [*expected, expected[-1]]
    assert found.late_state_bytes == late


def test_statistics_of_hand_frozen_layers_move_and_best_holds_them() -> None:
    found = run(WithNorm(), "body")
    statistics = {f"body.1.{key}" for key in ("running_mean", "running_var", "num_batches_tracked")}
    weights = {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"}
    assert set(found.frozen) == weights
    assert set(found.frozen_buffers) == statistics
    for way in ("grad", "optimizer"):
        assert moved(found, way) & (weights | statistics) == statistics, way
        assert found[way].changed["body.1.num_batches_tracked"] == 10.0
    assert moved(found, "best") & (weights | statistics) == set()
    for way in WAYS:  # the trained part's own statistics follow the batches in each
        assert found[way].changed["norm.num_batches_tracked"] == 10.0
        assert "norm.running_mean" in moved(found, way)


def test_tied_weights_are_frozen_under_either_name_and_listed_once() -> None:
    found = run(Tied(), "again")
    assert found.frozen == ("inner.weight",)
    assert list(found["none"].changed) == ["inner.weight", "head.weight", "head.bias"]
    for way in ("grad", "optimizer", "best"):
        assert moved(found, way) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("way", WAYS)
def test_predictions_come_true(way: Way) -> None:
    options = {"optimizer": torch.optim.AdamW, "options": {"lr": 1e-3}}
    result = run(WithNorm(), "body", **options)[way]
    predicted = result.predicted
    assert predicted.gradient_bytes == result.gradient_bytes
    assert predicted.optimizer_state_bytes == result.optimizer_state_bytes
    assert predicted.activation_bytes == result.activation_bytes


def test_nothing_outside_changes() -> None:
    model, data = WithNorm().eval(), batches()
    state = copy.deepcopy(model.state_dict())
    kept = copy.deepcopy(data)
    random_state = torch.get_rng_state()
    torch.set_num_threads(2)
    found = run(model, "body", batches=data)
    assert found["none"].changed["body.1.num_batches_tracked"] == 10.0  # trained in train mode
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == 2
    assert not model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for batch, before in zip(data, kept, strict=True):
        assert all(map(torch.equal, batch, before))


def test_the_same_seed_gives_the_same_changes() -> None:
    model, data = WithNorm(), batches()
    one, two, other = (run(model, "body", batches=data, seed=seed) for seed in (5, 5, 6))
    assert one["grad"].changed == two["grad"].changed
    assert one["grad"].changed != other["grad"].changed  # another dropout


class FlippedZero(torch.optim.SGD):
    """Turns 0.0 into -0.0: every bit counts, though the number is the same."""

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.neg_()


def test_a_flipped_sign_of_zero_is_a_change() -> None:
    model = Tutorial()
    with torch.no_grad():
        model.fc1.bias.zero_()
    found = run(model, "fc2", optimizer=FlippedZero, steps=1)
    assert found["best"].changed["fc1.bias"] == math.ulp(0.0)
    assert found["best"].changed["fc2.bias"] == 0.0


def test_integer_buffers_and_half_precision() -> None:
    model = Tutorial().bfloat16()
    data = [(x.bfloat16(), y) for x, y in batches()]
    found = run(model, "fc1", batches=data, options={"lr": 1.0})
    assert moved(found, "best") == {"fc2.weight", "fc2.bias"}
    assert found["none"].gradient_bytes == 172


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"freeze": "fc9"}, SelectorError, "fc9", id="matches-nothing"),
        pytest.param({"freeze": "**"}, PlanError, "nothing to train", id="nothing-left"),
        pytest.param(
            {"options": {"lr": -1.0}}, OptimizerError, "SGD.*Invalid learning rate", id="bad-lr"
        ),
        pytest.param(
            {"options": {"lr": 0.1, "beta": 1}}, OptimizerError, "SGD.*'beta'", id="bad-option"
        ),
        pytest.param(
            {"optimizer": torch.optim.Muon}, OptimizerError, "Muon.*2D", id="wrong-optimizer"
        ),
        pytest.param(
            {"options": {"lr": 1e30}}, ConfigError, "diverged.*lower learning rate", id="diverged"
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    settings = {"freeze": "fc1", **change}
    with pytest.raises(error, match=message):
        run(Tutorial(), settings.pop("freeze"), **settings)


def test_replay_trains_as_best_does_and_keeps_what_it_records() -> None:
    found = run(WithNorm(), "body")
    replayed = found["replay"].replayed
    assert found["replay"].changed == found["best"].changed
    assert replayed is not None
    assert (replayed.is_same, replayed.why_not) == (True, None)
    assert replayed.batches >= 10
    assert replayed.kept_bytes >= 30 * 16  # four floats for each of 10 x 3 rows
    assert all(found[way].replayed is None for way in WAYS[:-1])


def test_replay_says_why_it_cannot() -> None:
    model = Tutorial()
    model.fc1.register_forward_hook(lambda *_: None)
    replayed = run(model, "fc1")["replay"].replayed
    assert replayed is not None
    assert (replayed.batches, replayed.is_same) == (0, True)
    assert "a hook hangs on it" in str(replayed.why_not)


def test_batches_of_different_sizes_are_told_apart() -> None:
    data = [(torch.randn(size, 8), torch.randint(0, 10, (size,))) for size in (4, 4, 3)]
    replayed = run(Tutorial(), "fc1", batches=data)["replay"].replayed
    assert replayed is not None
    assert (replayed.is_same, replayed.why_not) == (True, None)
