"""The probe leaves nothing behind."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.proof.traceless import no_traces


class Restless(nn.Module):
    """Changes everything that a forward pass can change."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.spectral = parametrizations.spectral_norm(nn.Linear(8, 8))
        self.table = nn.Embedding(5, 8, max_norm=0.5)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("replaced", torch.zeros(2))
        self.plain = torch.zeros(3)
        self.calls = 0
        self.log: list[int] = []
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(self.calls)
        self.cache["x"] = x
        self.replaced = self.replaced + 1
        self.plain += 1
        self.late = x
        random.random()
        np.random.rand()
        x.mul_(1.0001)
        x = self.spectral(self.norm(self.fc(x))) + self.table(torch.tensor([1, 2, 3]))
        self.train(not self.training)
        self.register_forward_hook(lambda *_: None)
        return self.drop(checkpoint(self.fc, x, use_reentrant=True))


def image(model: nn.Module) -> dict[str, Any]:
    """Everything that is looked at, by identity and by content."""
    seen: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            place = f"{name}:{key}"
            seen[place] = id(value)
            if isinstance(value, dict):
                seen[f"{place} items"] = [(str(k), id(v)) for k, v in value.items()]
            if isinstance(value, list | bool | int):
                seen[f"{place} value"] = repr(value)
            if isinstance(value, Tensor):
                seen[f"{place} content"] = fl.fingerprint(value)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        gradient = tensor.grad
        seen[f"{name} content"] = fl.fingerprint(tensor)
        seen[f"{name} gradient"] = gradient if gradient is None else id(gradient)
        seen[f"{name} slope"] = gradient if gradient is None else fl.fingerprint(gradient)
        seen[f"{name} flag"] = tensor.requires_grad
    return seen


def random_states() -> tuple[object, ...]:
    numpy_state = np.random.get_state()
    return random.getstate(), numpy_state[1].tobytes(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("gradients", [True, False], ids=["with gradients", "without"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_check_with_an_example_changes_nothing(gradients: bool, training: bool) -> None:
    model = Restless().train(training)
    model.norm.requires_grad_(False)
    if gradients:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
    x = torch.randn(3, 8)
    content, before, states = x.clone(), image(model), random_states()
    findings = fl.check(model, example=x)
    assert "FL001" not in {finding.code for finding in findings}  # it has run to its end
    assert random_states() == states
    assert image(model) == before
    assert torch.equal(x, content)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=True)


def test_a_step_inside_backward_does_not_happen() -> None:
    model = nn.Linear(4, 2)
    stepped: list[int] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: stepped.append(1))
    fl.check(model, example=torch.randn(3, 4))
    # Reentrant checkpointing leaves no way but a backward() that writes gradients.
    assert fl.check(Checkpointed(model), example=torch.randn(3, 4, requires_grad=True)) == []
    assert stepped == []
    model(torch.randn(3, 4)).sum().backward()
    assert len(stepped) == 2


def test_a_model_that_raises_is_restored_as_well() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            self.norm(x)
            raise RuntimeError("no luck")

    model = Fails()
    before = image(model)
    (finding,) = fl.check(model, example=torch.randn(3, 4))
    assert finding.code == "FL001"
    assert "RuntimeError: no luck" in finding.message
    assert image(model) == before


def test_a_graph_that_is_alive_can_still_be_used() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    loss = model(torch.randn(3, 4)).sum()
    with no_traces(model):
        model[1].weight.data.add_(1)
    loss.backward()
    assert model[0].weight.grad is not None


def test_a_resized_tensor_is_put_back() -> None:
    model = nn.Linear(4, 2)
    with no_traces(model):
        model.weight.data = torch.zeros(1)
    assert model.weight.shape == (2, 4)


def test_a_compiled_model_is_not_compiled_by_the_probe() -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph

    model = torch.compile(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), backend=backend)
    x = torch.randn(3, 4)
    assert fl.check(model, example=x) == []
    assert compiled == []
    model(x)
    assert compiled == [1]


def test_without_an_example_nothing_runs() -> None:
    class Never(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    assert fl.check(Never(2, 2)) == []
