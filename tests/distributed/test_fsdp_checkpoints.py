"""Deltas and checkpoints of sharded models, and what is gathered and scattered, on two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranking import Party
from sharded_runs import batch, bits, half, network, sgd, shard, train
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor.debug import CommDebugMode

import frostline as fl


def tuned(rank: int) -> torch.nn.Module:
    model = shard(network())
    fl.freeze(model, ["stem", "blocks.0"])
    model.eval()  # keeps the statistics of both ranks alike
    train(model, sgd(model), range(2), half(rank))
    return model


def saved(rank: int, folder: Path) -> dict[str, Any]:
    model = tuned(rank)
    delta = fl.save_trained(model, folder / "tuned.safetensors")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {"delta": delta, "state": get_model_state_dict(model, options=options)}


def loaded(rank: int, path: Path) -> dict[str, str]:
    model = shard(network())
    fl.load_trained(model, path)
    assert model.head.weight.placements[0].is_shard()
    return bits(model)


def test_a_delta_is_that_of_one_process_and_loads_anywhere(pair: Party, tmp_path: Path) -> None:
    one, other = pair.values(saved, tmp_path)
    assert one["delta"] == other["delta"]
    assert other["state"] == {}  # torch, too, hands the whole to the first rank alone
    alone = network()
    alone.load_state_dict(one["state"])
    fl.freeze(alone, ["stem", "blocks.0"])
    fl.save_trained(alone, tmp_path / "alone.safetensors")
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("tuned", "alone")]
    assert files[0] == files[1]

    again = network()
    fl.load_trained(again, tmp_path / "tuned.safetensors")
    assert bits(again) == bits(alone)
    assert pair.values(loaded, tmp_path / "alone.safetensors") == [bits(alone)] * 2


def unsaved(rank: int, folder: Path) -> tuple[str, str]:
    path = folder / ("missing" if rank == 0 else "there") / "tuned.safetensors"
    path.parent.mkdir(exist_ok=True)
    if rank == 0:
        path = Path("/proc/nowhere/tuned.safetensors")
    try:
        fl.save_trained(tuned(rank), path)
    except fl.FrostlineError as error:
        return type(error).__name__, str(error)
    return "", ""


def test_what_the_first_rank_cannot_write_fails_on_all(pair: Party, tmp_path: Path) -> None:
    one, other = pair.values(unsaved, tmp_path)
    assert one == other
    assert one[0] == "OutputError"
    assert not list(tmp_path.rglob("*.safetensors"))


def unloaded(rank: int, path: Path, hazard: str) -> tuple[str, bool]:
    model = shard(network())
    if hazard == "file" and rank == 1:
        path = path.with_name("nothing.safetensors")
    elif hazard == "base":
        with torch.no_grad():  # in the last row of the stem, which lies on rank 1
            part = model.stem.weight.to_local()
            part[-1].add_(rank)
    elif hazard == "buffer" and rank == 1:
        fl.freeze(model, "blocks.1")
        model.blocks[0].norm.running_mean.add_(1)
    before = bits(model)
    try:
        fl.load_trained(model, path)
    except fl.FrostlineError as error:
        return str(error), bits(model) == before
    return "", bits(model) == before


@pytest.mark.parametrize(
    ("hazard", "reason"),
    [
        pytest.param("file", "there is no file", id="one rank has no file"),
        pytest.param("base", "belongs to another base", id="one shard is of another base"),
        pytest.param("buffer", "belongs to another base", id="one rank's statistics moved"),
    ],
)
def test_what_one_rank_cannot_load_is_loaded_on_none(
    pair: Party, tmp_path: Path, hazard: str, reason: str
) -> None:
    model = network()
    fl.freeze(model, ["stem", "blocks.0"])
    with torch.no_grad():
        model.head.bias.add_(1)
    path = tmp_path / "tuned.safetensors"
    fl.save_trained(model, path)
    one, other = pair.values(unloaded, path, hazard)
    assert one == other
    assert reason in one[0]
    assert one[1]


def resumed(rank: int, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Train four steps; and two, through torch.distributed.checkpoint, and two more."""
    runs = []
    for stops in (False, True):
        model = shard(network())
        frozen = fl.freeze(model, ["stem", "blocks.0"])
        optimizer = sgd(model)
        train(model, optimizer, range(2), half(rank))
        if stops:
            weights, moments = get_state_dict(model, optimizer)
            checkpoint.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)
            state = frozen.state_dict()
            model = shard(network())
            weights = get_model_state_dict(model)
            checkpoint.load({"model": weights}, checkpoint_id=folder)
            set_model_state_dict(model, weights)
            # Before the optimizer: torch asks the checkpoint for the state of all that trains.
            frozen = fl.resume_freeze(model, state)
            optimizer = sgd(model)
            moments = get_optimizer_state_dict(model, optimizer)
            checkpoint.load({"optimizer": moments}, checkpoint_id=folder)
            set_optimizer_state_dict(model, optimizer, moments)
        train(model, optimizer, range(2, 4), half(rank))
        frozen.verify()
        runs.append(bits(model))
    return runs[0], runs[1]


def test_a_run_goes_on_from_a_distributed_checkpoint(pair: Party, tmp_path: Path) -> None:
    for straight, stopped in pair.values(resumed, tmp_path / "run"):
        assert stopped == straight


def counted(
    rank: int, frozen: str | list[str] | None, *, saves: Path | None = None
) -> dict[str, int]:
    model = shard(network())
    if frozen is not None:
        fl.freeze(model, frozen)
    inputs, targets = batch(0)
    with CommDebugMode() as counter:
        if saves is None:
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        else:
            fl.save_trained(model, saves / "tuned.safetensors")
    names = {str(kind).rpartition(".")[2].strip("_"): n for kind, n in counter.comm_counts.items()}
    return {"gathered": 0, "scattered": 0} | {
        "gathered": sum(n for name, n in names.items() if name.startswith("allgather_base")),
        "scattered": sum(n for name, n in names.items() if "reduce_scatter" in name),
        "whole": sum(n for name, n in names.items() if name.startswith("all_gather_into_tensor")),
    }


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize(
    ("frozen", "gathered", "scattered"),
    [
        # Four groups (three blocks, the root) are gathered forward, and in backward those that
        # gradients pass through, but the root; and always the one before, fetched ahead.
        pytest.param(None, 7, 4, id="nothing"),
        pytest.param("blocks.1", 7, 3, id="the middle: gradients pass through it"),
        pytest.param(["stem", "blocks.0", "blocks.1"], 6, 2, id="the first: not needed again"),
        pytest.param(["stem", "blocks"], 5, 1, id="all but the head"),
    ],
)
def test_a_frozen_group_is_not_scattered_and_a_prefix_is_gathered_less(
    pair: Party, frozen: Any, gathered: int, scattered: int
) -> None:
    for found in pair.values(counted, frozen):
        assert (found["gathered"], found["scattered"]) == (gathered, scattered)


def test_a_delta_gathers_each_tensor_once(pair: Party, tmp_path: Path) -> None:
    tensors = len(list(network().parameters()))
    for found in pair.values(counted, "blocks.0", saves=tmp_path):
        assert found["whole"] == tensors
