"""Affine parameters, running statistics and the train/eval mode: three things, each chosen."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import frostline as fl

NORMS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), (3, 4)),
    "BatchNorm1d-cumulative": (lambda: nn.BatchNorm1d(4, momentum=None), (3, 4)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), (3, 4, 2, 2)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4), (3, 4, 2, 2, 2)),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(4), (3, 4)),
    "InstanceNorm1d": (
        lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        (3, 4, 5),
    ),
    "InstanceNorm2d": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        (3, 4, 2, 2),
    ),
}


def around(norm: nn.Module) -> nn.Module:
    return nn.ModuleDict({"norm": norm, "head": nn.Linear(4, 2)})


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


@pytest.mark.parametrize(("make", "shape"), NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("gradients", [True, False], ids=["grad", "no-grad"])
def test_by_default_all_three_rest(make, shape, gradients):
    model = around(make())
    frozen = fl.freeze(model, "norm")
    before = buffers_of(model)
    expected = copy.deepcopy(model.norm).eval()
    model.train()
    x = torch.randn(shape) + 3
    with torch.set_grad_enabled(gradients):
        out = model.norm(x)
    assert not model.norm.training
    assert torch.equal(out, expected(x))
    assert not moved(model, before)
    assert frozen.names == ("norm.weight", "norm.bias")
    assert frozen.verify().buffers == 3
    assert type(model.norm) is type(make())


@pytest.mark.parametrize(("make", "shape"), list(NORMS.values())[1:3], ids=list(NORMS)[1:3])
def test_mode_left_free_and_statistics_held(make, shape):
    model, twin = around(make()), around(make())
    frozen = fl.freeze(model, "norm", pin_eval=False)
    before = buffers_of(model)
    held = {key: model.norm._buffers[key] for key in model.norm._buffers}
    x = (torch.randn(shape) + 3).requires_grad_()
    out = model.norm(x)
    assert torch.equal(out, twin.norm(x))  # train mode: the batch's own statistics
    assert model.norm.training
    assert moved(twin, before)
    assert not moved(model, before)
    assert all(model.norm._buffers[key] is buffer for key, buffer in held.items())
    out.sum().backward()  # putting them back left the graph valid
    assert frozen.verify().buffers == 3
    model.eval()
    assert not model.norm.training
    frozen.undo()
    assert not model.norm._forward_pre_hooks
    assert not model.norm._forward_hooks
    model.train()
    model.norm(x)
    assert moved(model, before)


def test_statistics_free_in_eval_mode():
    model = around(nn.BatchNorm1d(4))
    frozen = fl.freeze(model, "norm", hold_statistics=False)
    model.train()
    model.norm(torch.randn(3, 4))
    assert not model.norm.training
    assert frozen.buffers == ()
    model.norm.running_mean.add_(1)
    assert frozen.verify().buffers == 0


def test_mode_and_statistics_free():
    model = around(nn.BatchNorm1d(4))
    frozen = fl.freeze(model, "norm", pin_eval=False, hold_statistics=False)
    before = buffers_of(model)
    model.norm(torch.randn(3, 4) + 3)
    assert moved(model, before)
    assert frozen.verify().tensors == 2
    assert not model.norm._forward_pre_hooks


def test_affine_trains_over_resting_statistics():
    body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model = nn.ModuleDict({"body": body, "head": nn.Linear(4, 2)})
    frozen = fl.freeze(model, "body.0", pin_eval="type:BatchNorm1d")
    before = buffers_of(model)
    weight = model.body[1].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model.train()
        model.head(model.body(torch.randn(5, 4))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (model.body[1].weight != weight).any()
    assert not moved(model, before)
    assert not model.body[1].training
    assert model.body.training
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert frozen.buffers == tuple(f"body.1.{name}" for name in statistics)
    assert frozen.verify().parameters == 2
    again = copy.deepcopy(model).train()
    again.body(torch.randn(5, 4))
    assert not moved(again, before)
    fl.unfreeze(again, "body.1")
    assert again.body[1].training
    model.train()
    frozen.undo()
    assert not model.body[1]._forward_pre_hooks


def test_a_later_thaw_lifts_the_pin_of_what_trains_and_its_undo_brings_it_back():
    model = around(nn.BatchNorm1d(4))
    fl.freeze(model, "head.weight", pin_eval="norm")
    assert not model.norm.training
    thawed = fl.unfreeze(model, "norm")
    assert model.norm.training
    thawed.undo()
    assert not model.norm.training


def test_each_call_keeps_its_own_choice_when_others_are_undone():
    model = around(nn.BatchNorm1d(4))
    pinned = fl.freeze(model, "norm")
    held = fl.freeze(model, "norm.weight", pin_eval=False)
    assert not model.norm.training
    pinned.undo()  # the bias trains again, so the module is not frozen
    assert model.norm.training
    held.undo()
    free = fl.freeze(model, "norm", pin_eval=False)
    pinned = fl.freeze(model, "norm")
    assert not model.norm.training
    pinned.undo()
    assert model.norm.training
    before = buffers_of(model)
    model.norm(torch.randn(3, 4))
    assert not moved(model, before)
    assert free.verify().ok


@pytest.mark.parametrize(
    "duplicate",
    [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda model: pickle.loads(pickle.dumps(model)), id="pickle"),
    ],
)
def test_copies_hold_their_statistics(duplicate):
    model = around(nn.BatchNorm1d(4))
    fl.freeze(model, "norm", pin_eval=False)
    made = duplicate(model)
    before = buffers_of(made)
    made.train()
    made.norm(torch.randn(3, 4))
    assert not moved(made, before)
    assert made.norm.training
    fl.unfreeze(made, "norm")
    made.norm(torch.randn(3, 4))
    assert moved(made, before)


class Codebook(nn.Module):
    """Rebinds one buffer, writes another in place, whatever the mode; may raise afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, *, again: bool = False, fail: bool = False) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.count += 1
        if fail:
            raise RuntimeError("on purpose")
        return self(x) if again else x * self.scale


@pytest.mark.parametrize("options", [{}, {"again": True}, {"fail": True}], ids=str)
def test_buffers_are_put_back_however_they_were_written(options):
    model = nn.ModuleDict({"codes": Codebook(), "head": nn.Linear(4, 2)})
    frozen = fl.freeze(model, "codes", pin_eval=False)
    fails = pytest.raises(RuntimeError, match="on purpose") if options.get("fail") else None
    with fails or nullcontext():
        model.codes(torch.randn(3, 4) + 1, **options)
    assert frozen.verify().buffers == 2
    assert model.codes._forward_pre_hooks
    model.codes(torch.randn(3, 4))
    assert frozen.verify().buffers == 2


def test_what_ignores_eval_mode_is_named_by_the_proof():
    model = nn.ModuleDict({"codes": Codebook(), "head": nn.Linear(4, 2)})
    frozen = fl.freeze(model, "codes")
    model.codes(torch.randn(3, 4) + 1)
    with pytest.raises(fl.FrozenChangedError) as caught:
        frozen.verify()
    assert [change.name for change in caught.value.changes] == ["codes.mean", "codes.count"]
    assert "its module's forward" in caught.value.changes[0].cause


@pytest.mark.slow
@pytest.mark.parametrize("pin_eval", [True, False], ids=["pinned", "held"])
def test_compiled_without_a_graph_break(pin_eval):
    body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model = nn.Sequential(body, nn.Linear(4, 2))
    frozen = fl.freeze(model, "0", pin_eval=pin_eval)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        model.train()
        compiled(torch.randn(5, 4)).sum().backward()
        assert model[0][1].training != pin_eval
        assert frozen.verify().buffers == 3
