"""Freezing and thawing under fully_shard, on two ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranking import Party
from sharded_runs import batch, bits, gathered, half, network, sgd, shard, train
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

import frostline as fl
from frostline.freezing.modes import pin_of

BLOCK = ("norm.weight", "norm.bias", "up.weight", "up.bias", "down.weight", "down.bias")


def phases(model: nn.Module, part: slice) -> dict[str, torch.Tensor]:
    """Freeze, train, thaw, train, freeze, train; statistics are frozen, so halves make a whole."""
    frozen = fl.freeze(model, "blocks")
    optimizer = sgd(model)
    train(model, optimizer, range(2), part)
    frozen.verify()
    thawed = fl.unfreeze(model, ["blocks.2.up", "blocks.2.down"], gradients="drop")
    fl.sync(model, optimizer)
    train(model, optimizer, range(2, 4), part)
    frozen.verify()
    thawed.undo()
    fl.sync(model, optimizer)
    train(model, optimizer, range(4, 6), part)
    return gathered(model)


def sharded_phases(rank: int) -> dict[str, torch.Tensor]:
    return phases(shard(network()), half(rank))


def test_phases_are_those_of_one_process(pair: Party) -> None:
    alone = phases(network(), slice(None))
    for found in pair.values(sharded_phases):
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            # Two halves of a sum, added: the last bits differ.
            torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-5)


def frozen_and_trained(rank: int, *, first: str) -> dict[str, Any]:
    model = network()
    if first == "freeze":
        frozen = fl.freeze(model, "blocks.0")
        shard(model)
    else:
        shard(model)
        frozen = fl.freeze(model, "blocks.0")
    train(model, sgd(model), range(3), half(rank))
    proof = frozen.verify()
    return {"bits": bits(model), "names": frozen.names, "tensors": proof.tensors}


def test_freezing_before_and_after_sharding_is_the_same(pair: Party) -> None:
    before = pair.values(frozen_and_trained, first="freeze")
    assert before == pair.values(frozen_and_trained, first="shard")
    assert before[0]["bits"] == before[1]["bits"]
    assert before[0]["names"] == tuple(f"blocks.0.{name}" for name in BLOCK)
    assert before[0]["tensors"] == 9  # and the three statistics


def pinned_after(rank: int, *, kept: bool) -> list[bool]:
    model = network()
    handle: fl.Frozen | None = fl.freeze(model, "blocks.0")
    if not kept:
        del handle
    shard(model)
    fl.freeze(model, "blocks.1")
    pinned = [pin_of(block.norm) is not None for block in model.blocks]
    fl.unfreeze(model, "blocks.0")
    return [*pinned, pin_of(model.blocks[0].norm) is not None]


@pytest.mark.parametrize("kept", [True, False])
def test_sharding_leaves_frozen_modules_pinned(pair: Party, kept: bool) -> None:
    assert pair.values(pinned_after, kept=kept)[0] == [True, True, False, False]


def undone_after(rank: int) -> tuple[bool, bool]:
    model = network()
    frozen = fl.freeze(model, "blocks.0")
    shard(model).train()
    frozen.undo()
    pinned = any(pin_of(module) is not None for module in model.modules())
    return all(p.requires_grad for p in model.parameters()), pinned


def test_undo_reaches_what_was_sharded_since(pair: Party) -> None:
    assert pair.values(undone_after) == [(True, False)] * 2


def moved_before(rank: int) -> str:
    model = network()
    frozen = fl.freeze(model, "blocks.0")
    with torch.no_grad():
        model.blocks[0].up.weight.add_(1)
    shard(model)
    with pytest.raises(fl.FrozenChangedError) as caught:
        frozen.verify()
    return ", ".join(change.name for change in caught.value.changes)


def test_sharding_hides_no_change(pair: Party) -> None:
    assert pair.values(moved_before) == ["blocks.0.up.weight"] * 2


def frozen_while_gathered(rank: int) -> tuple[bool, bool]:
    model = shard(network())
    with torch.no_grad():
        model(batch(0)[0])
    gathered_now = not hasattr(model.head.weight, "placements")
    fl.freeze(model, "head")
    model.reshard()
    return gathered_now, model.head.weight.requires_grad


def test_what_is_gathered_for_a_forward_is_not_what_is_frozen(pair: Party) -> None:
    assert pair.values(frozen_while_gathered) == [(True, False)] * 2


def moved_on_one(rank: int) -> str:
    model = shard(network())
    frozen = fl.freeze(model, "blocks.0")
    with torch.no_grad():
        model.blocks[0].down.weight.to_local().add_(rank)
    with pytest.raises(fl.FrozenChangedError) as caught:
        frozen.verify()
    return str(caught.value)


def test_all_ranks_come_to_one_verdict(pair: Party) -> None:
    one, other = pair.values(moved_on_one)
    assert one == other
    assert "blocks.0.down.weight: 15 of 30 elements moved, by at most 1" in one
    assert "(found on rank 1)" in one


def prints_and_states(rank: int) -> dict[str, Any]:
    model = shard(network())
    frozen = fl.freeze(model, "blocks.0")
    state = frozen.state_dict()
    fl.resume_freeze(shard(network()), fl.freeze(network(), "blocks.0").state_dict())
    return {"state": state, "prints": frozen.fingerprints()}


def test_fingerprints_are_those_of_one_process(pair: Party) -> None:
    alone = fl.freeze(network(), "blocks.0")
    for found in pair.values(prints_and_states):
        assert found["prints"] == alone.fingerprints()
        assert fl.resume_freeze(network(), found["state"]).names == alone.names


def pending(rank: int) -> str:
    model = shard(network())
    # Of this loss only one rank's rows of the head have a gradient that is not zero.
    model(batch(0)[0])[:, 0].sum().backward()
    for parameter in model.parameters():
        if parameter is not model.head.weight:
            parameter.grad = None
    with pytest.raises(fl.TransitionError) as caught:
        fl.freeze(model, "blocks.0")
    return str(caught.value)[:11]


def test_pending_gradients_are_refused_on_all_ranks(pair: Party) -> None:
    assert pair.values(pending) == ["head.weight"] * 2


def thawed_in_bfloat16(rank: int, *, frozen_first: bool) -> dict[str, Any]:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = shard(network(norm=nn.LayerNorm), mp_policy=policy)
    optimizer = sgd(model)
    fl.freeze(model, "blocks.1")
    if not frozen_first:
        fl.unfreeze(model, "blocks.1")
    nn.functional.cross_entropy(model(batch(9)[0]), batch(9)[1]).backward()
    optimizer.zero_grad()
    if frozen_first:
        fl.unfreeze(model, "blocks.1")
    train(model, optimizer, range(2), half(rank))
    return bits(model)


def test_a_group_frozen_at_its_first_forward_thaws_in_mixed_precision(pair: Party) -> None:
    thawed = pair.values(thawed_in_bfloat16, frozen_first=True)
    assert thawed == pair.values(thawed_in_bfloat16, frozen_first=False)


def offloaded(rank: int) -> tuple[int, bool]:
    model = shard(network(), offload_policy=CPUOffloadPolicy(pin_memory=False))
    frozen = fl.freeze(model, "blocks.0")
    with fl.guard(model, optimizer := sgd(model)):
        train(model, optimizer, range(2), half(rank))
    return frozen.verify().tensors, model.blocks[0].up.weight.to_local().is_cpu


def test_offloaded_shards_are_proven(pair: Party) -> None:
    assert pair.values(offloaded) == [(9, True)] * 2


def guarded(rank: int, *, on: str) -> list[str]:
    model = shard(network())
    frozen = fl.freeze(model, ["stem", "blocks.0"])
    optimizer = sgd(model)
    with fl.guard(model, optimizer, on=on) as guard:
        train(model, optimizer, range(1), half(rank))
        with torch.no_grad():  # leaves the frozen stem gathered
            model.eval()(batch(0)[0])
        train(model.train(), optimizer, range(1, 2), half(rank))
        if on == "restore":
            with torch.no_grad():
                model.blocks[0].up.weight.to_local().add_(1)
            train(model, optimizer, range(2, 3), half(rank))
    frozen.verify()
    return [violation.name for violation in guard.report.violations]


@pytest.mark.filterwarnings("ignore::frostline.errors.GuardWarning")
def test_a_guard_is_not_misled_by_gathering_and_puts_shards_back(pair: Party) -> None:
    assert pair.values(guarded, on="raise") == [[]] * 2
    assert pair.values(guarded, on="restore") == [["blocks.0.up.weight"]] * 2


def scheduled(rank: int | None) -> dict[str, Any]:
    model = network() if rank is None else shard(network())
    model.eval()  # statistics of halves are not those of the whole
    optimizer = sgd(model)
    freezer = fl.Freezer(
        model,
        optimizer,
        schedule="gradual-unfreeze",
        distributed=None if rank is None else "fsdp2",
        total_steps=6,
        steps_per_epoch=2,
    )
    for step in range(6):
        train(model, optimizer, range(step, step + 1), slice(None) if rank is None else half(rank))
        freezer.step()
    freezer.verify()
    again = freezer.state_dict()
    freezer.load_state_dict(again)
    frozen = [row.frozen for row in freezer.timeline()]
    prints = again["frozen"]
    weights = gathered(model)
    freezer.close()
    return {"frozen": frozen, "prints": sorted(prints), "weights": weights}


def test_a_schedule_goes_as_in_one_process(pair: Party) -> None:
    alone = scheduled(None)
    for found in pair.values(scheduled):
        assert (found["frozen"], found["prints"]) == (alone["frozen"], alone["prints"])
        for name, tensor in alone["weights"].items():
            torch.testing.assert_close(found["weights"][name], tensor, atol=1e-6, rtol=1e-5)


def looked_at(rank: int) -> list[str]:
    model = shard(network())
    fl.freeze(model, "blocks.0")
    return [finding.code for finding in fl.check(model, sgd(model))]


def test_check_finds_nothing_wrong(pair: Party) -> None:
    assert pair.values(looked_at) == [[]] * 2
