"""What a 70B model costs one of 64 ranks under each plan; and the same counts, measured here.

Foretold by frostline.measure from the model's shapes alone. What is foretold is checked on a small
model of the same kind in 2 and 4 processes on this machine, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _report import heading, table
from torch import Tensor, distributed, nn
from torch import multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import frostline as fl
from frostline.measure import ShardedStep, predict, sharded_step
from frostline.units import format_bytes, format_seconds

COMPUTE, REDUCE = torch.bfloat16, torch.float32
RANKS, TOKENS, SAMPLES = 64, 4096, 100_000
# What an accelerator of today reaches of its dense bfloat16 peak in a well-tuned run: 0.4 of 989.
FLOPS_A_SECOND = 0.4 * 989e12
LARGE = LlamaConfig(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=128256,
    max_position_embeddings=8192,
)
SMALL = LlamaConfig(
    hidden_size=60,
    intermediate_size=90,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=101,
)


def trained(last: int) -> list[str]:
    """Selectors of what trains: so many last layers, and the head with the norm before it."""
    layers = [fl.last(last, "model.layers")] if last else []
    return [*layers, "model.norm", "lm_head"]


def build(config: LlamaConfig, last: int | None) -> nn.Module:
    """The model, all of it trainable or only its last layers and its head."""
    model = LlamaForCausalLM(config)
    if last is not None:
        fl.freeze(model, all_but=trained(last))
    return model


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    value: Tensor = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    return value


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])


def foretell(model: nn.Module, ranks: int, tokens: Tensor, skip: int) -> ShardedStep:
    layers = len(model.model.layers)
    return sharded_step(
        model,
        tokens,
        loss,
        optimizer=adamw,
        blocks=[f"model.layers.{index}" for index in range(layers)],
        ranks=ranks,
        compute=COMPUTE,
        reduce=REDUCE,
        skip=skip,
    )


def compute_seconds(model: nn.Module, tokens: Tensor, skip: int) -> float:
    """Time of one rank's products in a step, at the speed assumed."""
    model.model.layers = model.model.layers[skip:]
    ahead = predict(model, tokens, loss, optimizer=adamw)
    return (ahead.forward_flops + ahead.backward_flops) / FLOPS_A_SECOND


def large_model() -> None:
    """The table of the large model."""
    tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
    layers = LARGE.num_hidden_layers
    plans: dict[str, tuple[int | None, bool]] = {
        "nothing frozen": (None, False),
        "last 40 layers train": (40, False),
        "last 40, replayed": (40, True),
        "last 8 layers train": (8, False),
        "last 8, replayed": (8, True),
        "head alone": (0, False),
        "head alone, replayed": (0, True),
    }
    memory, traffic = [], []
    for name, (last, is_replayed) in plans.items():
        skip = layers - last if is_replayed and last is not None else 0
        with torch.device("meta"):
            model = build(LARGE, last)
        step = foretell(model, RANKS, tokens, skip)
        seconds = compute_seconds(model, tokens, skip)
        memory.append(
            [
                name,
                format_bytes(step.parameter_bytes),
                format_bytes(step.gradient_bytes),
                format_bytes(step.optimizer_state_bytes),
                format_bytes(step.gathered_peak_bytes),
                format_bytes(step.activation_bytes),
                format_bytes(step.held_bytes),
            ]
        )
        traffic.append(
            [
                name,
                format_bytes(_through_a_ring(step.gathered_bytes)),
                format_bytes(_through_a_ring(step.reduced_bytes)),
                format_seconds(seconds),
                format_bytes(SAMPLES * step.handed_on_bytes) if skip else "",
                f"{format_bytes(int(step.handed_on_bytes / seconds))}/s" if skip else "",
            ]
        )
    columns = ["plan", "parameters", "gradients", "AdamW", "gathered", "activations", "in all"]
    table(columns, memory)
    columns = ["plan", "gathered", "reduced", "products take", "records", "read, each rank"]
    table(columns, traffic)


def _through_a_ring(nbytes: int) -> int:
    """What one rank takes in of a collective of that size."""
    return nbytes * (RANKS - 1) // RANKS


class Traffic(TorchDispatchMode):
    """Counts the bytes of what is gathered and of what is reduced."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered = self.reduced = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if "allgather_base" in str(func):
            self.gathered += args[0].nbytes
        elif "reduce_scatter_base" in str(func):
            self.reduced += args[1].nbytes
        return func(*args, **(kwargs or {}))


def measure(last: int | None, ranks: int) -> dict[str, int]:
    """Train the small model for two steps, and count in the second."""
    mesh = init_device_mesh("cpu", (ranks,))
    model = build(SMALL, last)
    policy = MixedPrecisionPolicy(param_dtype=COMPUTE, reduce_dtype=REDUCE)
    shard: Callable[[nn.Module], object] = partial(fully_shard, mesh=mesh, mp_policy=policy)
    for layer in model.model.layers:
        shard(layer)
    shard(model)
    optimizer = adamw(model)
    for _ in range(2):
        optimizer.zero_grad()
        with Traffic() as traffic:
            loss(model, torch.zeros(2, 16, dtype=torch.int64)).backward()
        optimizer.step()
    held = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return {
        "parameters": sum(tensor.nbytes for tensor in held),
        "gathered": traffic.gathered,
        "reduced": traffic.reduced,
    }


def work(rank: int, ranks: int, folder: str) -> None:
    """One process: all plans, one after the other."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
    )
    found = {name: measure(last, ranks) for name, last in CHECKED.items()}
    everyone: list[Any] = [None] * ranks
    distributed.all_gather_object(everyone, found)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(everyone))
    distributed.barrier()  # a rank that leaves early takes its connections along
    distributed.destroy_process_group()


CHECKED: dict[str, int | None] = {"nothing frozen": None, "last 2 layers train": 2, "head alone": 0}


def small_model() -> None:
    """The table of the small model: foretold and measured."""
    rows = []
    for ranks in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(work, (ranks, folder), nprocs=ranks)
            everyone = json.loads((Path(folder) / "found.json").read_text())
        for name, last in CHECKED.items():
            step = foretell(build(SMALL, last), ranks, torch.zeros(2, 16, dtype=torch.int64), 0)
            ahead = (step.parameter_bytes, step.gathered_bytes, step.reduced_bytes)
            fullest = {
                key: max(found[name][key] for found in everyone) for key in everyone[0][name]
            }
            measured = tuple(fullest.values())
            rows.append(
                [
                    name,
                    str(ranks),
                    *(f"{a:,} / {b:,}" for a, b in zip(ahead, measured, strict=True)),
                    "yes" if ahead == measured else "NO",
                ]
            )
    table(["plan", "ranks", "parameters", "gathered", "reduced", "equal"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("large", "small"))
    only = parser.parse_args().only
    heading(
        "Scale",
        f"A Llama of 70.6 billion parameters, sharded by fully_shard over {RANKS} ranks: kept and"
        " reduced in float32, computed in bfloat16, AdamW. Each rank has one sequence of"
        f" {TOKENS} tokens a step and keeps all activations. All of it is foretold from shapes; no"
        " such machine was at hand.",
    )
    if only != "small":
        print("## One of 64 ranks\n")
        print(
            "'Gathered' in the first table: whole parameters at the fullest moment. In the second:"
            " what a rank takes in a step, through a ring. 'Products take' is the arithmetic of a"
            f" step at {FLOPS_A_SECOND / 1e12:.0f} TFLOP/s, an assumption. 'Records': what"
            f" {SAMPLES:,} sequences take in replay's folder, for all ranks; 'read': how fast each"
            " rank has to read them, if nothing but the products takes time.\n"
        )
        large_model()
    if only != "large":
        print("## The same counts, foretold / measured in processes here\n")
        print("A Llama of 5 layers, width 60; bytes on the fullest rank, in the second step.\n")
        small_model()


if __name__ == "__main__":
    main()
