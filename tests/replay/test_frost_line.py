"""Where a model would be cut, and that looking for it leaves nothing behind."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.errors import ModelTypeError, ReplayError
from frostline.proof import fingerprint
from frostline.replay.frost_line import FrostLine, SkippedCall, frost_line
from frostline.replay.store import open_store


class Net(nn.Module):
    """Two frozen layers, a live one, and a mask that only the frozen part uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 4)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        x = self.second(self.first(x if scale is None else x * scale).relu())
        return self.head(x if shift is None else x + shift)


def net(all_but: str = "head") -> Net:
    model = Net()
    fl.freeze(model, all_but=all_but)
    return model.train()


def test_what_is_skipped_and_what_is_kept():
    line = frost_line(net(), torch.randn(32, 8))
    assert line.skipped == ("first", "second")
    assert line.kept == {"second": 16}
    assert (line.bytes_per_sample, line.bytes_once, line.samples) == (16, 0, 32)
    assert [call.type_name for call in line.calls] == ["Linear", "Linear"]
    assert line.needless_inputs == ("0",)
    assert line.declined is None
    assert 0 < line.skipped_share <= 1
    assert line.forward_seconds > 0
    assert line.replayed_seconds is not None
    assert line.replayed_seconds > 0


@pytest.mark.parametrize(
    ("give", "needless"),
    [
        pytest.param(lambda x, s: x, ("0",), id="a-tensor"),
        pytest.param(lambda x, s: (x, s), ("0", "1"), id="a-tuple"),
        pytest.param(lambda x, s: [x, s, s[:, :4].clone()], ("0", "1"), id="a-list"),
        pytest.param(lambda x, s: {"scale": s, "x": x}, ("scale", "x"), id="a-mapping"),
        pytest.param(
            lambda x, s: {"x": x, "shift": s[:, :4].clone()}, ("x",), id="a-field-that-is-needed"
        ),
    ],
)
def test_which_inputs_need_not_be_loaded(give, needless):
    batch = give(torch.randn(32, 8), torch.randn(32, 8))
    assert frost_line(net(), batch).needless_inputs == needless


def test_a_tensor_that_is_the_same_for_all_samples_is_kept_once():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(4, 4)
            self.body = nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x) * self.head.weight.sum() + self.embed(torch.arange(4)))

    model = Positions()
    fl.freeze(model, all_but="head")
    line = frost_line(model, torch.randn(32, 4, 4))
    assert line.kept == {"body": 64, "embed": 0}
    assert (line.bytes_per_sample, line.bytes_once) == (64, 64)


def test_the_number_of_samples_may_be_told():
    batch = {"scale": torch.ones(1, 8), "x": torch.randn(32, 8)}
    line = frost_line(net(), batch, samples=32)
    assert (line.kept, line.samples) == ({"second": 16}, 32)


def test_what_is_made_every_time_is_named():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    for parameter in model[:2].parameters():
        parameter.requires_grad_(False)  # by hand: the norm stays in train mode
    line = frost_line(model.train(), torch.randn(32, 8))
    assert line.skipped == ("0",)
    assert line.refused == {"1": "its buffer 'running_mean' changes as it runs"}
    assert "Frozen, and made every time:\n  1: its buffer" in str(line)


def test_what_depends_on_batch_mates_is_not_skipped():
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    model = nn.Sequential(nn.Linear(8, 8), Centred(), nn.Linear(8, 8), nn.Linear(8, 2))
    fl.freeze(model, all_but="3")
    line = frost_line(model, torch.randn(32, 8))
    assert line.skipped == ("0",)
    assert "batch" in line.refused["1"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        pytest.param(nn.Sequential(nn.Linear(8, 8)), "nothing in the model is frozen", id="none"),
        pytest.param(
            nn.Sequential(nn.Linear(8, 8)).requires_grad_(False),
            "nothing in the model trains",
            id="all",
        ),
        pytest.param(
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)),
            "there is nothing to replay",
            id="behind-what-trains",
        ),
    ],
)
def test_why_nothing_is_replayed(model, reason):
    line = frost_line(model, torch.randn(4, 8))
    assert reason in line.declined
    assert (line.skipped, line.kept, line.needless_inputs) == ((), {}, ())
    assert (line.skipped_share, line.replayed_seconds) == (0.0, None)
    assert str(line).startswith(f"Nothing is replayed: {line.declined}.")


def test_it_leaves_the_model_and_all_randomness_as_they_were():
    class Busy(nn.Module):
        """Counts in an attribute, moves a buffer, and draws from three generators."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(8, 8)
            self.norm = nn.BatchNorm1d(8)
            self.head = nn.Linear(8, 2)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            noise = torch.rand(1) + random.random() + np.random.random()
            return self.head(self.norm(self.body(x)) * noise.float())

    model = Busy()
    fl.freeze(model, "body")
    model.train()
    model(torch.randn(4, 8)).sum().backward()
    before = {name: fingerprint(tensor) for name, tensor in model.state_dict().items()}
    gradients = {name: p.grad.clone() for name, p in model.head.named_parameters()}
    modes = [module.training for module in model.modules()]
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    frost_line(model, torch.randn(32, 8, generator=torch.Generator()))
    assert {name: fingerprint(tensor) for name, tensor in model.state_dict().items()} == before
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.head.named_parameters())
    assert [module.training for module in model.modules()] == modes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.calls == 1
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_it_records_where_it_is_told(tmp_path):
    store = open_store(tmp_path)
    frost_line(net(), torch.randn(32, 8), store=store)
    assert store.nbytes > 16 * 32


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(torch.tensor(1.0), id="no-dimension"),
        pytest.param({}, id="nothing"),
        pytest.param(SimpleNamespace(x=torch.ones(2)), id="opaque"),
    ],
)
def test_a_batch_without_samples_is_refused(batch):
    with pytest.raises(ReplayError, match="no tensor with a dimension that counts samples"):
        frost_line(net(), batch)


def test_something_that_is_no_model_is_refused():
    with pytest.raises(ModelTypeError, match="got dict"):
        frost_line({}, torch.ones(2, 2))


def test_what_a_model_raises_is_raised_and_nothing_is_left():
    model = net()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        frost_line(model, torch.randn(4, 7))
    assert "forward" not in vars(model.first)


def test_it_is_printed_as_a_table():
    call = SkippedCall(
        place="encoder.0", type_name="Block", bytes_per_sample=0, bytes_once=0, share=0.25
    )
    kept = SkippedCall(
        place="encoder.1", type_name="Block", bytes_per_sample=2048, bytes_once=64, share=0.5
    )
    line = FrostLine(
        calls=(call, kept),
        refused={"encoder.2": "it draws random numbers"},
        needless_inputs=("pixels", "mask"),
        samples=8,
        forward_seconds=0.02,
        replayed_seconds=0.005,
        declined=None,
    )
    assert str(line) == (
        "skipped    class        kept a sample  of the forward\n"
        "encoder.0  Block                    -            25 %\n"
        "encoder.1  Block  2.0 KiB + 64 B once            50 %\n"
        "total                         2.0 KiB            75 %\n"
        "A forward pass of 8 samples takes 20 ms; replayed, 5 ms.\n"
        "Need not be loaded: pixels, mask.\n"
        "Frozen, and made every time:\n"
        "  encoder.2: it draws random numbers"
    )
