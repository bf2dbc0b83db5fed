"""Literal byte counts: float32 has 4 bytes, int64 has 8."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frostline.measure import (
    SavedTensors,
    gradient_bytes,
    optimizer_state_bytes,
    saved_activations,
)


def tutorial() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 10))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(3, 8)).square().mean().backward()
    optimizer.step()


# --- gradients --------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.out = nn.Linear(8, 10, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x))


class SideBySide(nn.Module):
    """The gradients of stacked parameters are views of one gradient of the stack."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(5))
        self.b = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a, self.b]) * x


@pytest.mark.parametrize(
    ("model", "x", "frozen", "expected"),
    [
        pytest.param(tutorial(), torch.ones(3, 8), [], 4 * (36 + 50), id="all-train"),
        pytest.param(tutorial(), torch.ones(3, 8), ["0.weight", "0.bias"], 200, id="head-trains"),
        pytest.param(tutorial().double(), torch.ones(3, 8).double(), [], 8 * 86, id="float64"),
        pytest.param(tutorial().bfloat16(), torch.ones(3, 8).bfloat16(), [], 172, id="bfloat16"),
        pytest.param(Tied(), torch.arange(3), [], 4 * 80, id="tied-weight-counts-once"),
        pytest.param(SideBySide(), torch.ones(2, 5), [], 4 * 10, id="views-of-one-storage"),
        pytest.param(
            # Rows 1, 2, 2 of 8 floats and their indices: not yet coalesced, so three.
            nn.Embedding(100, 8, sparse=True), torch.tensor([1, 2, 2]), [], 3 * 32 + 3 * 8,
            id="sparse",
        ),
    ],
)  # fmt: skip
def test_gradient_bytes(model: nn.Module, x: Tensor, frozen: list[str], expected: int) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    assert gradient_bytes(model) == 0
    model(x).sum().backward()
    assert gradient_bytes(model) == expected
    model.zero_grad()
    assert gradient_bytes(model) == 0


def test_a_frozen_parameter_that_still_holds_a_gradient_counts() -> None:
    model = tutorial()
    model(torch.ones(3, 8)).sum().backward()
    model[0].requires_grad_(False)
    assert gradient_bytes(model) == 344


# --- optimizer state --------------------------------------------------------------------------

WEIGHTS = 4 * 86


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda p: torch.optim.SGD(p, lr=0.1), 0, id="sgd"),
        pytest.param(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), WEIGHTS, id="momentum"),
        pytest.param(torch.optim.AdamW, 2 * WEIGHTS + 4 * 4, id="adamw-with-four-counters"),
        pytest.param(
            lambda p: torch.optim.AdamW(p, amsgrad=True), 3 * WEIGHTS + 4 * 4, id="amsgrad"
        ),
        # A matrix r x c keeps r + c numbers, a vector all of its own; a counter for each.
        pytest.param(torch.optim.Adafactor, 4 * (12 + 4 + 14 + 10 + 4), id="adafactor-factored"),
    ],
)
def test_optimizer_state_bytes(
    make: Callable[[object], torch.optim.Optimizer], expected: int
) -> None:
    model = tutorial()
    optimizer = make(model.parameters())
    assert optimizer_state_bytes(optimizer) == 0
    step(model, optimizer)
    assert optimizer_state_bytes(optimizer) == expected


def test_state_in_lists_is_found_and_shared_storages_count_once() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    history = torch.zeros(10)
    optimizer.state[weight] = {
        "step": 7,
        "name": "text is not walked",
        "history": [history[:5], (history[5:],)],
        "nested": {"scale": torch.zeros((), dtype=torch.float64)},
    }
    assert optimizer_state_bytes(optimizer) == 40 + 8


def test_state_of_what_never_has_a_gradient_is_not_allocated() -> None:
    """Why way one and best hold the same state on current PyTorch."""
    model = tutorial()
    model[0].requires_grad_(False)
    everything = torch.optim.AdamW(model.parameters())
    step(model, everything)
    assert optimizer_state_bytes(everything) == 2 * 200 + 2 * 4


# --- activations ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frozen", "activations", "parameters"),
    [
        # The input 3x8 and the ReLU's output 3x4, and fc2.weight to go on to fc1.
        pytest.param([], 4 * (24 + 12), 4 * 40, id="nothing-frozen"),
        pytest.param(["0"], 4 * 12, 0, id="first-frozen-keeps-only-the-input-of-the-second"),
        pytest.param(["2"], 4 * (24 + 12), 4 * 40, id="last-frozen-is-passed-through"),
    ],
)
def test_saved_activations(frozen: list[str], activations: int, parameters: int) -> None:
    model = tutorial()
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    assert saved_activations(model, lambda: model(torch.ones(3, 8)).sum()) == SavedTensors(
        activation_bytes=activations, parameter_bytes=parameters
    )


def test_targets_that_backward_needs_are_counted() -> None:
    model = nn.Linear(4, 10)
    x, y = torch.ones(3, 4), torch.zeros(3, dtype=torch.int64)
    saved = saved_activations(model, lambda: F.cross_entropy(model(x), y))
    # Input, log-probabilities, targets, and the sum of the weights of the targets' classes.
    assert saved.activation_bytes == 4 * 12 + 4 * 30 + 8 * 3 + 4


def test_buffers_are_apart() -> None:
    norm = nn.BatchNorm1d(4).eval()
    saved = saved_activations(norm, lambda: norm(torch.ones(3, 4)).sum())
    # Running mean and variance, and the weight.
    assert saved == SavedTensors(activation_bytes=4 * 12, parameter_bytes=3 * 16)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        pytest.param(lambda x: [x * x], 40, id="one-storage-saved-twice"),
        pytest.param(lambda x: [x[:2].exp(), x[2:].exp()], 8 + 32, id="outputs-of-their-own"),
        pytest.param(lambda x: [x[:2].sin(), x[2:].sin()], 40, id="two-views-of-one-storage"),
        pytest.param(lambda x: [x[:1].sin()], 40, id="a-view-keeps-all-of-its-storage"),
        pytest.param(lambda x: [x.expand(7, 10).sin()], 40, id="an-expanded-view-is-small"),
        pytest.param(lambda x: [(x * 2).sin().detach()], 0, id="dropped-before-the-end"),
        # The tensor lives on as a plain value; autograd's hold on it is gone with its node.
        pytest.param(lambda x: [(x * 2).exp().detach()], 0, id="dropped-output"),
    ],
)
def test_storages_are_counted_once_and_whole(
    forward: Callable[[Tensor], list[Tensor]], expected: int
) -> None:
    x = torch.ones(10, requires_grad=True)

    def run() -> Tensor:
        total = torch.zeros((), requires_grad=True)
        for value in forward(x):
            total = total + value.sum()
        return total

    assert saved_activations(nn.Module(), run).activation_bytes == expected


def test_sparse_and_opaque_tensors_are_counted() -> None:
    dense = torch.ones(4, 2, requires_grad=True)
    matrix = torch.eye(4).to_sparse()
    run_sparse = lambda: torch.sparse.mm(matrix, dense).sum()  # noqa: E731
    # Four values, and two indices of 8 bytes for each.
    assert saved_activations(nn.Module(), run_sparse).activation_bytes == 4 * 4 + 4 * 16

    onednn = torch.ones(4, 2).to_mkldnn()
    optimizer = torch.optim.SGD([dense], lr=0.1)
    optimizer.state[dense] = {"opaque": onednn}
    assert optimizer_state_bytes(optimizer) == 32


def test_wrapper_subclasses_count_what_they_hold() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    optimizer.state["nested"] = {"value": nested}
    # Six rows of three floats, and three offsets.
    assert optimizer_state_bytes(optimizer) == 6 * 12 + 3 * 8


def test_backward_works_on_what_was_recorded() -> None:
    model = tutorial()
    kept: list[Tensor] = []

    def run() -> Tensor:
        kept.append(model(torch.ones(3, 8)).sum())
        return kept[0]

    saved_activations(model, run)
    kept[0].backward()
    assert gradient_bytes(model) == 344


def test_the_graph_is_gone_afterwards() -> None:
    """exp saves its own output: held as it comes, it would keep its node, and all before it."""
    model = tutorial()
    before = [p.clone() for p in model.parameters()]
    witness: list[weakref.ref[object]] = []

    class Token:
        pass

    def run() -> Tensor:
        loss = model(torch.ones(3, 8)).exp().sum()
        token = Token()
        loss.grad_fn.next_functions[0][0].metadata["token"] = token
        witness.append(weakref.ref(token))
        return loss

    saved_activations(model, run)
    assert witness[0]() is None
    assert gradient_bytes(model) == 0
    assert all(map(torch.equal, before, model.parameters()))
