"""Freezing with activations or weights that wait on the CPU."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from combining import FROZEN, Network, bits, loss_of, network, train
from torch import Tensor, nn

import frostline as fl


def with_saved_on_cpu(model: nn.Module, step: int) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return loss_of(model, step)


def test_activations_on_the_cpu_change_nothing() -> None:
    model, plain = network(), network()
    frozen = fl.freeze(model, FROZEN)
    fl.freeze(plain, FROZEN)
    assert train(model, loss=with_saved_on_cpu) == train(plain)
    assert bits(model) == bits(plain)
    assert frozen.verify().tensors == 20


def offload(model: Network) -> None:
    """As accelerate does it; between forwards the modules hold tensors on meta."""
    for part in (model.stem, model.blocks[0], model.blocks[1]):
        cpu_offload(part, execution_device=torch.device("cpu"))
    assert model.stem.weight.is_meta


@pytest.mark.parametrize("first", ["freeze", "offload"])
def test_offloaded_frozen_weights_are_proven_by_their_content(first: str) -> None:
    model, plain = network(), network()
    fl.freeze(plain, FROZEN)
    if first == "freeze":
        frozen = fl.freeze(model, FROZEN)
        offload(model)
    else:
        offload(model)
        frozen = fl.freeze(model, FROZEN)
    assert train(model) == train(plain)
    assert frozen.verify().tensors == 20
    assert frozen.fingerprints()["stem.weight"] == fl.fingerprint(plain.stem.weight)

    with torch.no_grad():
        model.blocks[0].up._hf_hook.weights_map["weight"].add_(1)
    with pytest.raises(fl.FrozenChangedError, match=r"blocks\.0\.up\.weight"):
        frozen.verify()


def test_a_delta_of_offloaded_weights_is_refused() -> None:
    model = network()
    offload(model)
    fl.freeze(model, FROZEN)
    with pytest.raises(fl.CheckpointError, match="has no content"):
        fl.save_trained(model, "never-written.safetensors")
