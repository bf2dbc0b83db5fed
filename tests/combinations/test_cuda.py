"""What only a GPU shows: its memory, its scaler, its recurrent kernels, NCCL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from combining import FROZEN, batch, network, sgd
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import frostline as fl

pytestmark = pytest.mark.gpu


def test_fingerprints_do_not_depend_on_the_device() -> None:
    model = network()
    here = {name: fl.fingerprint(p) for name, p in model.named_parameters()}
    model.cuda()
    assert {name: fl.fingerprint(p) for name, p in model.named_parameters()} == here


def test_a_scaler_in_float16_moves_nothing_frozen() -> None:
    model = network().cuda()
    frozen = fl.freeze(model, FROZEN)
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cuda")
    with fl.guard(model, optimizer):
        for step in range(4):
            inputs, targets = (tensor.cuda() for tensor in batch(step))
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = nn.functional.cross_entropy(model(inputs), targets)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert frozen.verify().tensors == 20


def test_a_write_on_another_stream_is_found() -> None:
    model = network().cuda()
    frozen = fl.freeze(model, FROZEN)
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        model.stem.weight.add_(1)
    stream.synchronize()
    with pytest.raises(fl.FrozenChangedError, match=r"stem\.weight"):
        frozen.verify()


def test_a_frozen_cudnn_network_keeps_its_flat_weights() -> None:
    """cuDNN lays an RNN's weights side by side; it runs in eval mode, and backward needs train."""
    model = nn.ModuleDict({"rnn": nn.LSTM(4, 8, num_layers=2), "head": nn.Linear(8, 2)}).cuda()
    frozen = fl.freeze(model, "rnn")
    optimizer = sgd(model)
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        model["head"](model["rnn"](torch.randn(3, 2, 4, device="cuda"))[0]).sum().backward()
        optimizer.step()
    assert frozen.verify().tensors == 8


def _sharded(rank: int, folder: Path) -> None:
    torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=1
    )
    model = network().cuda()
    frozen = fl.freeze(model, FROZEN)
    mesh = init_device_mesh("cuda", (1,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = sgd(model)
    for step in range(3):
        inputs, targets = (tensor.cuda() for tensor in batch(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    frozen.verify()
    fl.unfreeze(model, "blocks.1", gradients="drop")
    fl.save_trained(model, folder / "tuned.safetensors")
    fl.load_trained(network(), folder / "tuned.safetensors")
    distributed.destroy_process_group()


def test_fsdp2_over_nccl(tmp_path: Path) -> None:
    multiprocessing.spawn(_sharded, args=(tmp_path,), nprocs=1)
    assert (tmp_path / "tuned.safetensors").is_file()
