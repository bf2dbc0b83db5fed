"""Tensor parallelism, and FSDP1 as far as it goes, on two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranking import Party
from sharded_runs import Block, bits, half, mesh, network, sgd, train
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import frostline as fl


def in_columns(model: nn.Module) -> nn.Module:
    styles = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    for block in model.blocks:
        parallelize_module(block, mesh(), styles)
    return model


def tensor_parallel(rank: int, folder: Path) -> tuple[int, list[str], dict[str, str]]:
    model = network(inner=4)  # torch's own limit: rows have to divide by the ranks
    frozen = fl.freeze(model, "blocks.0")
    in_columns(model).eval()
    optimizer = sgd(model)
    with fl.guard(model, optimizer):
        train(model, optimizer, range(2))
    proof = frozen.verify()
    fl.save_trained(model, folder / "tuned.safetensors")
    again = in_columns(network(inner=4))
    fl.load_trained(again, folder / "tuned.safetensors")
    assert bits(again) == bits(model)
    with torch.no_grad():
        model.blocks[0].up.weight.to_local().add_(rank)
    with pytest.raises(fl.FrozenChangedError) as caught:
        frozen.verify()
    return proof.tensors, [change.name for change in caught.value.changes], bits(model)


def test_tensor_parallel_models_are_frozen_proven_and_saved(pair: Party, tmp_path: Path) -> None:
    one, other = pair.values(tensor_parallel, tmp_path)
    assert one == other
    assert one[:2] == (9, ["blocks.0.up.weight"])
    alone = network(inner=4)
    frozen = fl.freeze(alone, "blocks.0")
    train(alone.eval(), sgd(alone), range(2))
    again = network(inner=4)
    fl.load_trained(again, tmp_path / "tuned.safetensors")
    for name, tensor in alone.named_parameters():
        torch.testing.assert_close(dict(again.named_parameters())[name], tensor)
    assert frozen.verify().tensors == 9


def wrapped(model: nn.Module, *, original: bool) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        device_id=torch.device("cpu"),
        use_orig_params=original,
    )


def flat_with_originals(rank: int) -> tuple[int, list[str]]:
    model = wrapped(network(), original=True)
    frozen = fl.freeze(model, ["blocks.0.up", "blocks.1"])
    optimizer = sgd(model)
    train(model, optimizer, range(2), half(rank))
    tensors = frozen.verify().tensors
    before = [parameter.detach().clone() for parameter in model.parameters()]
    fl.unfreeze(model, "blocks.0", gradients="drop")
    fl.sync(model, optimizer)
    train(model, optimizer, range(2, 4), half(rank))
    frozen.verify()
    moved = [
        name.replace("_fsdp_wrapped_module.", "")
        for (name, parameter), was in zip(model.named_parameters(), before, strict=True)
        if "blocks.0.up" in name.replace("_fsdp_wrapped_module.", "")
        and not torch.equal(parameter, was)
    ]
    return tensors, moved


def test_fsdp1_with_original_parameters_freezes_parts_and_thaws_them(pair: Party) -> None:
    one, other = pair.values(flat_with_originals)
    assert one[0] == other[0] == 2 + 9
    assert {*one[1], *other[1]} == {"blocks.0.up.weight", "blocks.0.up.bias"}


def refusals(rank: int, folder: Path) -> list[str]:
    flat = wrapped(network(), original=False)
    said = []
    with pytest.raises(fl.SelectorError) as part:
        fl.freeze(flat, "blocks.0.up")
    said.append(str(part.value))
    fl.freeze(flat, "blocks.0")  # as a whole it can be
    for call in (fl.save_trained, fl.load_trained):
        with pytest.raises(fl.CheckpointError) as delta:
            call(flat, folder / "tuned.safetensors")
        said.append(str(delta.value))
    model = network()
    frozen = fl.freeze(model, "blocks.0")
    wrapped(model, original=True)
    with pytest.raises(fl.FrozenChangedError) as cut:
        frozen.verify()
    said.append(str(cut.value))
    return said


def test_fsdp1_says_what_it_cannot_do_and_what_can(pair: Party, tmp_path: Path) -> None:
    for part, saving, loading, cut in pair.values(refusals, tmp_path):
        assert "wrap with use_orig_params=True, or shard with" in part
        assert saving == loading
        assert "get_model_state_dict" in saving
        assert "wrap first, then freeze" in cut
