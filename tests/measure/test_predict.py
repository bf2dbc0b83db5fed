"""What is predicted equals, to the byte and the operation, what is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frostline.errors import FrostlineError, MeasureError, OptimizerError
from frostline.measure import (
    gradient_bytes,
    optimizer_state_bytes,
    predict,
    saved_activations,
)
from frostline.measure.predict import flop_counter

Batch = tuple[Tensor, Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 10))


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        nn.Conv2d(4, 8, 3, stride=2),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


class Transformer(nn.Module):
    """Tied embedding and output, positions, causal attention, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 16)
        self.positions = nn.Parameter(torch.zeros(6, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(16, 10, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(6)
        hidden = self.layers(self.embed(x) + self.positions, mask=mask, is_causal=True)
        return self.out(hidden).transpose(1, 2)


class FusedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 6, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(attended.transpose(1, 2).flatten(2)).mean(1)


def pictures() -> Batch:
    return torch.randn(5, 1, 8, 8), torch.randint(0, 10, (5,))


def sentences() -> Batch:
    return torch.randint(0, 10, (3, 6)), torch.randint(0, 10, (3, 6))


def vectors() -> Batch:
    return torch.randn(3, 8), torch.randint(0, 10, (3,))


def nothing(model: nn.Module) -> None:
    pass


def first_half(model: nn.Module) -> None:
    parameters = list(model.parameters())
    for parameter in parameters[: len(parameters) // 2]:
        parameter.requires_grad_(False)


def evaluate(model: nn.Module) -> None:
    model.eval()


def measure(
    model: nn.Module, batch: Batch, make: Callable[[nn.Module], torch.optim.Optimizer]
) -> tuple[int, ...]:
    """The five numbers of a prediction, from a step that is really taken."""
    saved = saved_activations(model, lambda: cross_entropy(model, batch))
    with flop_counter() as counter:
        loss = cross_entropy(model, batch)
        forward_flops = counter.get_total_flops()
        loss.backward()
    optimizer = make(model)
    optimizer.step()
    return (
        gradient_bytes(model),
        optimizer_state_bytes(optimizer),
        saved.activation_bytes,
        forward_flops,
        counter.get_total_flops() - forward_flops,
    )


@pytest.mark.parametrize("prepare", [nothing, first_half, evaluate])
@pytest.mark.parametrize(
    ("model", "batch"),
    [
        pytest.param(mlp, vectors, id="mlp"),
        pytest.param(cnn, pictures, id="cnn"),
        pytest.param(Transformer, sentences, id="transformer"),
    ],
)
def test_predicted_is_what_is_measured(
    model: Callable[[], nn.Module],
    batch: Callable[[], Batch],
    prepare: Callable[[nn.Module], None],
) -> None:
    net, data = model(), batch()
    prepare(net)
    make = lambda m: torch.optim.AdamW(m.parameters())  # noqa: E731
    ahead = predict(net, data, cross_entropy, optimizer=make)
    assert (
        ahead.gradient_bytes,
        ahead.optimizer_state_bytes,
        ahead.activation_bytes,
        ahead.forward_flops,
        ahead.backward_flops,
    ) == measure(net, data, make)
    assert ahead.forward_flops > 0


def test_fused_attention() -> None:
    """Torch's own counter passes over the CPU's kernel, so the operations are written out."""
    net, batch = FusedAttention(), (torch.randn(2, 6, 16), torch.randint(0, 10, (2,)))
    make = lambda m: torch.optim.SGD(m.parameters(), lr=0.1)  # noqa: E731
    ahead = predict(net, batch, cross_entropy, optimizer=make)
    saved = saved_activations(net, lambda: cross_entropy(net, batch))
    assert ahead.activation_bytes == saved.activation_bytes
    linear_flops = 2 * 12 * 16 * (48 + 10)
    one_product = 2 * 2 * 2 * 6 * 6 * 8  # multiply and add, batch, heads, length², width
    assert ahead.forward_flops == linear_flops + 2 * one_product
    # The first layer passes no gradient on to its input.
    assert ahead.backward_flops == 2 * linear_flops - 2 * 12 * 16 * 48 + 5 * one_product


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("SGD", {"lr": 0.1}, id="sgd"),
        pytest.param("SGD", {"lr": 0.1, "momentum": 0.9}, id="momentum"),
        pytest.param("Adam", {"amsgrad": True}, id="amsgrad"),
        pytest.param("AdamW", {"foreach": True}, id="adamw-foreach"),
        pytest.param("AdamW", {"fused": True}, id="adamw-fused"),
        *(
            pytest.param(name, {}, id=name.lower())
            for name in (
                "Adadelta", "Adafactor", "Adagrad", "Adamax", "ASGD",
                "NAdam", "RAdam", "RMSprop", "Rprop",
            )
        ),
    ],
)  # fmt: skip
def test_optimizer_state_of_every_class(name: str, options: dict[str, Any]) -> None:
    net, batch = cnn().bfloat16().float(), pictures()
    net[5].double()  # two dtypes, and so two sizes of state
    net[5].register_forward_pre_hook(lambda module, args: (args[0].double(),))
    net[5].register_forward_hook(lambda module, args, output: output.float())
    make = lambda m: getattr(torch.optim, name)(m.parameters(), **options)  # noqa: E731
    ahead = predict(net, batch, cross_entropy, optimizer=make)
    cross_entropy(net, batch).backward()
    optimizer = make(net)
    optimizer.step()
    assert ahead.optimizer_state_bytes == optimizer_state_bytes(optimizer)


def test_what_the_optimizer_was_not_given_has_no_state() -> None:
    """Way two: the gradients come all the same."""
    ahead = predict(
        mlp(),
        vectors(),
        cross_entropy,
        optimizer=lambda m: torch.optim.SGD(m[2].parameters(), lr=0.1, momentum=0.9),
    )
    assert (ahead.gradient_bytes, ahead.optimizer_state_bytes) == (344, 200)


def test_gradients_from_before_are_not_predicted() -> None:
    net, batch = mlp(), vectors()
    cross_entropy(net, batch).backward()
    net[0].requires_grad_(False)  # and its gradient is still there
    ahead = predict(
        net, batch, cross_entropy, optimizer=lambda m: torch.optim.AdamW(m.parameters())
    )
    assert ahead.gradient_bytes == 200
    assert ahead.optimizer_state_bytes == 2 * 200 + 2 * 4


def test_a_model_that_does_not_fit_anywhere() -> None:
    """A petabyte of weights, on the meta device: nothing is allocated."""
    with torch.device("meta"):
        net = nn.Linear(16_000_000, 16_000_000, bias=False)
        x = torch.empty(2, 16_000_000)
    ahead = predict(
        net,
        x,
        lambda model, x: model(x).sum(),
        optimizer=lambda m: torch.optim.AdamW(m.parameters()),
    )
    weights = 4 * 16_000_000**2
    assert ahead.gradient_bytes == weights
    assert ahead.optimizer_state_bytes == 2 * weights + 4
    assert ahead.forward_flops == 2 * 2 * 16_000_000**2


def test_nothing_changes() -> None:
    net, batch = cnn(), pictures()
    cross_entropy(net, batch).backward()
    state = copy.deepcopy(net.state_dict())
    gradients = [p.grad for p in net.parameters()]
    before = [None if g is None else g.clone() for g in gradients]
    random_state = torch.get_rng_state()
    predict(net, batch, cross_entropy, optimizer=lambda m: torch.optim.AdamW(m.parameters()))
    assert torch.equal(torch.get_rng_state(), random_state)
    for key, value in net.state_dict().items():
        assert type(value) is Tensor
        assert torch.equal(value, state[key]), key
    for parameter, kept, values in zip(net.parameters(), gradients, before, strict=True):
        assert parameter.grad is kept
        assert kept is not None
        assert values is not None
        assert torch.equal(kept, values)


def test_a_batch_may_be_any_object_with_tensors() -> None:
    class Sample:
        def __init__(self) -> None:
            self.fields = {"x": torch.ones(3, 8), "note": "not a tensor"}

    ahead = predict(
        mlp(),
        Sample(),
        lambda model, sample: model(sample.fields["x"]).sum(),
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    )
    assert ahead.activation_bytes == 4 * (24 + 12)


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class Picking(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[x[:, 0] > 0])


class Numpy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(x.numpy() + 1))


class Stray(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + STRAY)


STRAY = torch.ones(4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param(Branching(4, 4), "depends on the content of a tensor", id="branch"),
        pytest.param(Picking(4, 4), "depends on the content of a tensor", id="boolean-mask"),
        pytest.param(Numpy(4, 4), r"without computing, it fails with: .*numpy", id="numpy"),
        pytest.param(Stray(4, 4), "without computing, it fails with: ", id="tensor-of-no-one"),
        pytest.param(nn.Linear(5, 4), r"it fails with: .*\[3, 4\] X \[5, 4\]", id="bug"),
    ],
)
def test_what_cannot_be_predicted_is_refused(
    model: nn.Module, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    make = lambda m: torch.optim.SGD(m.parameters(), lr=0.1)  # noqa: E731
    loss = lambda m, x: m(x).sum()  # noqa: E731
    with pytest.raises(MeasureError, match=message) as raised:
        predict(model, torch.ones(3, 4), loss, optimizer=make)
    assert isinstance(raised.value, FrostlineError)
    assert isinstance(raised.value, RuntimeError)
    assert caplog.records == []  # torch logs the same at length


def test_a_loss_that_uses_the_original_model_is_refused_before_it_harms_it() -> None:
    net = mlp()
    with pytest.raises(MeasureError):
        predict(
            net,
            vectors(),
            lambda model, batch: cross_entropy(net, batch),
            optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
        )
    assert gradient_bytes(net) == 0


def test_frostlines_own_errors_come_through_as_they_are() -> None:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        raise OptimizerError("no such option")

    with pytest.raises(OptimizerError, match=r"^no such option$"):
        predict(mlp(), vectors(), cross_entropy, optimizer=make)
