from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from zoo import Net

from frostline.errors import ScheduleError
from frostline.finetune.networks import DigitsCNN
from frostline.schedules import snr
from frostline.schedules.base import Progress
from frostline.schedules.layout import layout_of
from frostline.schedules.snr import signal_to_noise, snr_scores
from frostline.schedules.spectrum import Spectrum, layer_type, top_of_each_type


def with_values(values, rows, columns):
    """A matrix with these singular values."""
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(rows, len(values), dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, len(values), dtype=torch.float64))
    return (u * torch.tensor(values, dtype=torch.float64)) @ v.mT


@pytest.mark.parametrize(
    ("values", "rows", "columns", "score"),
    [
        # IQR 2 - 1 = 1; threshold 1 / 1.349 x (1 + sqrt(5/5)) = 1.4826; 13.5 / 1.5 / 10.
        pytest.param([10.0, 2.0, 1.5, 1.0, 0.5], 5, 5, 0.9, id="square"),
        # The same values in 5 x 20: threshold 1 / 1.349 x (1 + sqrt(5/20)) = 1.1119: the same cut.
        pytest.param([10.0, 2.0, 1.5, 1.0, 0.5], 5, 20, 0.9, id="wide"),
        # In 5 x 500 the threshold is 1 / 1.349 x 1.1 = 0.8154, so 1.0 is signal: 14.5 / 0.5 / 10.
        pytest.param([10.0, 2.0, 1.5, 1.0, 0.5], 5, 500, 2.9, id="very-wide"),
        pytest.param([10.0, 2.0, 1.5, 1.0, 0.5], 500, 5, 2.9, id="very-tall"),
        # IQR 7 - 3 = 4; threshold 5.9303: 9 + 8 + 7 + 6 over 5 + 4 + 3 + 2 + 1, over 9.
        pytest.param([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 9, 9, 30 / 15 / 9, id="even"),
    ],
)
def test_the_score(values, rows, columns, score):
    matrix = with_values(values, rows, columns)
    assert signal_to_noise(matrix) == pytest.approx(score, rel=1e-5)
    assert signal_to_noise(matrix * 7) == pytest.approx(score / 7, rel=1e-5)
    assert signal_to_noise(matrix.to(torch.bfloat16)) == pytest.approx(score, rel=0.05)


def test_no_noise_and_no_signal():
    assert signal_to_noise(torch.eye(4)) == math.inf
    assert signal_to_noise(torch.zeros(4, 3)) == 0.0


def test_a_long_matrix_is_read_in_pieces(monkeypatch):
    matrix = with_values([9.0, 5.0, 4.0, 2.0, 1.0, 0.5], 700, 6)
    whole = signal_to_noise(matrix)
    sizes = []
    real = torch.linalg.qr

    def counted(stacked, **options):
        sizes.append(len(stacked))
        return real(stacked, **options)

    monkeypatch.setattr(snr, "_PIECE", 600)
    monkeypatch.setattr(torch.linalg, "qr", counted)
    assert signal_to_noise(matrix) == pytest.approx(whole, rel=1e-5)
    assert signal_to_noise(matrix.mT) == pytest.approx(whole, rel=1e-5)
    assert max(sizes) == 106
    assert len(sizes) == 14


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.experts = nn.Parameter(torch.randn(2, 4, 6))
        self.norm = nn.LayerNorm(4)
        self.tied = nn.Linear(6, 4, bias=False)
        self.again = nn.Linear(6, 4, bias=False)
        self.again.weight = self.tied.weight
        self.register_parameter("steps", nn.Parameter(torch.zeros(2, 2, dtype=torch.int64), False))


def test_each_matrix_once_in_order():
    model = Mixed()
    seen = []
    scores = snr_scores(model, progress=lambda *each: seen.append(each))
    assert list(scores) == ["experts", "conv.weight", "tied.weight"]
    assert seen == [(0, 3, "experts"), (1, 3, "conv.weight"), (2, 3, "tied.weight")]
    conv, experts = model.conv.weight, model.experts
    assert scores["conv.weight"] == signal_to_noise(conv.detach().reshape(5, 27))
    each = [signal_to_noise(matrix) for matrix in experts.detach()]
    assert scores["experts"] == sum(each) / 2


def test_weights_and_random_numbers_are_left_alone():
    model = Mixed()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    snr_scores(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: nn.Linear(2, 2, device="meta"), "weight has no content", id="meta"),
        pytest.param(lambda: nn.LazyLinear(2), "weight has no content", id="lazy"),
        pytest.param(lambda: nn.Linear(0, 2), "weight is empty", id="empty"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_what_has_no_score(make, message):
    with pytest.raises(ScheduleError, match=message):
        snr_scores(make())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite(value):
    layer = nn.Linear(3, 3)
    layer.weight.data[1, 1] = value
    with pytest.raises(ScheduleError, match="weight holds infinities or NaN"):
        snr_scores(layer)


@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("model.layers.13.mlp.up.weight", "model.layers.13", "model.layers.#.mlp.up.weight"),
        ("h.1.mlp.experts.5.up.weight", "h.1", "h.#.mlp.experts.#.up.weight"),
        ("layer3.1.conv2.weight", "layer3", "layer#.#.conv2.weight"),
        ("block2.0.weight", "block2", "block#.0.weight"),
        ("fc1.weight", "fc1", "fc#.weight"),
        ("encoder.block.0.q.weight", "encoder.block.0", "encoder.block.#.q.weight"),
        ("pooler.dense.weight", "h.0", "pooler.dense.weight"),
    ],
)
def test_layer_types(name, block, kind):
    assert layer_type(name, ["h.10", block]) == kind


@pytest.mark.parametrize(
    ("count", "fraction", "taken"),
    [(4, 0.5, 2), (5, 0.5, 2), (1, 0.5, 1), (10, 0.3, 3), (10, 0.29, 2), (3, 1, 3), (6, 0.01, 1)],
)
def test_rounded_down_but_at_least_one(count, fraction, taken):
    blocks = [f"h.{n}" for n in range(count)]
    scores = {f"{block}.fc.weight": float(n) for n, block in enumerate(blocks)}
    top = top_of_each_type(scores, blocks, fraction)
    assert top == {f"h.{n}.fc.weight" for n in range(count - taken, count)}


def test_of_equals_the_first():
    scores = dict.fromkeys(["h.0.a.weight", "h.1.a.weight"], 2.0)
    assert top_of_each_type(scores, ["h.0", "h.1"], 0.5) == {"h.0.a.weight"}


def decided(model, schedule):
    progress = Progress(at="start", layout=layout_of(model, grain="tensor"), trains=frozenset())
    state = schedule.start(progress)
    decision = schedule.decide(progress, {}, state)
    assert schedule.decide(progress, {}, decision.state).train is None
    assert schedule.needs(progress, decision.state) == frozenset()
    return decision


def net():
    """Four blocks, of which the second and the last stand out."""
    model = Net(4)
    for number, layer in enumerate(model.layers):
        noise = 0.1 if number in (1, 3) else 1.0
        values = [8.0, *(noise * value for value in (5, 4, 3, 2, 1, 1, 1))]
        layer.fc.weight.data = with_values(values, 8, 8).float()
    return model


STEM, HEAD = {"stem.weight", "stem.bias"}, {"head.weight", "head.bias"}


def test_the_choice():
    model = net()
    best = {f"layers.{n}.fc.{end}" for n in (1, 3) for end in ("weight", "bias")}
    decision = decided(model, Spectrum())
    assert decision.train == STEM | HEAD | best
    assert decision.why == "2 of 4 matrices have the most signal of their type"
    assert decided(model, Spectrum(stem=False)).train == HEAD | best
    assert len(decided(model, Spectrum(fraction=0.25)).train) == 6


def test_on_the_default_network():
    train = decided(DigitsCNN(), Spectrum()).train
    assert sum(name.startswith("block") for name in train) == 1


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, math.nan, "half", True])
def test_wrong_fractions(fraction):
    with pytest.raises(ScheduleError, match="fraction must be a number above 0, at most 1"):
        Spectrum(fraction=fraction)


def test_blocks_without_matrices():
    model = nn.ModuleDict({"a": nn.LayerNorm(3), "b": nn.LayerNorm(3), "head": nn.Linear(3, 2)})
    layout = layout_of(model, grain="tensor", named=["a", "b"])
    progress = Progress(at="start", layout=layout, trains=frozenset())
    with pytest.raises(ScheduleError, match="blocks hold none"):
        Spectrum().start(progress)
