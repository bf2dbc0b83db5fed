from __future__ import annotations

import copy

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from zoo import Net, models

import frostline as fl


def snapshot(model):
    """All that undo has to restore: flags, modes, hooks."""
    return (
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
    )


def test_flags_modes_and_hooks_come_back():
    model = Net(2)
    model.stem.weight.requires_grad_(False)
    model.layers[1].eval()
    before = snapshot(model)
    frozen = fl.freeze(model, all_but="head")
    assert snapshot(model) != before
    model.train()
    frozen.undo()
    assert snapshot(model) == before


def test_never_everything_trainable():
    model = Net(1)
    model.stem.requires_grad_(False)
    fl.freeze(model, all_but="head").undo()
    assert not model.stem.weight.requires_grad
    assert model.layers[0].fc.weight.requires_grad


def test_twice_is_once():
    model = Net(1)
    frozen = fl.freeze(model, "stem")
    frozen.undo()
    model.stem.requires_grad_(False)
    frozen.undo()
    assert not model.stem.weight.requires_grad


def test_overlapping_freezes_in_any_order():
    model = Net(1)
    one, two = (
        fl.freeze(model, ["stem", "layers"]),
        fl.freeze(model, ["layers", "drop.", "head"][:1]),
    )
    one.undo()
    assert model.stem.weight.requires_grad
    assert not model.layers[0].fc.weight.requires_grad
    assert not model.layers[0].norm.training
    two.undo()
    assert model.layers[0].fc.weight.requires_grad
    assert model.layers[0].norm.training


def test_undoing_a_freeze_takes_the_thaw_inside_it_along():
    model = Net(1)
    model.layers.requires_grad_(False)
    before = snapshot(model)
    with fl.freeze(model, all_but="head"):
        fl.unfreeze(model, "layers.0")
        assert model.layers[0].fc.weight.requires_grad
    assert snapshot(model) == before


def test_undoing_a_thaw_freezes_again():
    model = Net(1)
    fl.freeze(model, all_but="head")
    before = snapshot(model)
    thawed = fl.unfreeze(model, "layers.0")
    assert model.layers[0].norm.training
    thawed.undo()
    assert snapshot(model) == before


def test_two_halves_of_a_module():
    """BatchNorm's weight by one call, its bias by another: frozen only while both hold."""
    model = Net(1)
    norm = model.layers[0].norm
    weight = fl.freeze(model, norm.weight)
    assert norm.training
    bias = fl.freeze(model, norm.bias)
    assert not norm.training
    weight.undo()
    assert norm.training
    bias.undo()
    assert (norm.training, len(norm._forward_pre_hooks)) == (True, 0)


def test_a_user_who_thaws_by_hand_in_between():
    model = Net(1)
    outer = fl.freeze(model, "stem")
    model.stem.weight.requires_grad_(True)
    inner = fl.freeze(model, "stem")
    inner.undo()
    assert model.stem.weight.requires_grad
    outer.undo()
    assert model.stem.weight.requires_grad


def test_other_peoples_hooks_stay():
    model = Net(1)
    calls = []
    model.stem.register_forward_pre_hook(lambda module, args: calls.append(module.training))
    frozen = fl.freeze(model, "stem")
    model.train()
    model(torch.randn(4, 8))
    frozen.undo()
    model(torch.randn(4, 8))
    assert calls == [False, True]


SELECTORS = st.sampled_from(["**", "0", "1", "2", "*.weight", "**.bias", "type:Linear", "last:1"])


@hypothesis.given(models(), st.data())
def test_last_in_first_out_is_exact(model, data):
    """Whatever is called in between, each undo restores what was before its call."""
    stack = []
    for _ in range(data.draw(st.integers(1, 6))):
        before = snapshot(model)
        call = data.draw(st.sampled_from([fl.freeze, fl.unfreeze]))
        try:
            handle = call(model, data.draw(SELECTORS))
        except fl.FrostlineError:
            assert snapshot(model) == before
            continue
        stack.append((handle, before))
        if data.draw(st.booleans()):
            model(torch.randn(4, 8))
    while stack:
        handle, before = stack.pop()
        handle.undo()
        assert snapshot(model) == before


@hypothesis.given(models(), st.data())
def test_any_order_ends_where_it_began(model, data):
    before = snapshot(model)
    handles = []
    for _ in range(data.draw(st.integers(1, 5))):
        try:
            handles.append(fl.freeze(model, data.draw(SELECTORS)))
        except fl.FrostlineError:
            continue
        if data.draw(st.booleans()):
            model.train()
    for handle in data.draw(st.permutations(handles)):
        handle.undo()
        check_modes(model)
    assert snapshot(model) == before


@hypothesis.given(models(), st.data())
def test_invariants_over_random_sequences(model, data):
    """Values, gradients and modes, through freeze, thaw, undo, train, step, copies and reloads."""
    handles = []
    for _ in range(data.draw(st.integers(1, 8))):
        action = data.draw(
            st.sampled_from(["freeze", "unfreeze", "undo", "train", "step", "copy", "reload"])
        )
        try:
            if action == "freeze":
                handles.append(fl.freeze(model, data.draw(SELECTORS), gradients="drop"))
            elif action == "unfreeze":
                handles.append(fl.unfreeze(model, data.draw(SELECTORS), gradients="drop"))
            elif action == "undo" and handles:
                handles.pop(data.draw(st.integers(0, len(handles) - 1))).undo()
        except fl.FrostlineError:
            continue
        if action == "train":
            model.train()
        elif action == "step":
            train_one_step(model)
        elif action == "copy":
            check_modes(copy.deepcopy(model))
        elif action == "reload":
            model.load_state_dict(copy.deepcopy(model.state_dict()))
        check_modes(model)
        for handle in handles:
            if handle.names:
                handle.verify()


def train_one_step(model):
    if not any(p.requires_grad for p in model.parameters()):
        return
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1, weight_decay=0.3)
    optimizer.zero_grad()
    model(torch.randn(4, 8)).square().sum().backward()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    optimizer.step()


def check_modes(model):
    """Invariant 3, for modules of which no parameter was frozen by hand."""
    seen = {}
    handles = [
        module.register_forward_hook(lambda m, args, out: seen.update({id(m): m.training}))
        for module in model.modules()
    ]
    modes = [(module, module.training) for module in model.modules()]
    buffers = copy.deepcopy(list(model.buffers()))
    model.train()
    model(torch.randn(4, 8))
    for handle in handles:
        handle.remove()
    for module in model.modules():
        pinned = bool(module._forward_pre_hooks)
        if id(module) in seen:
            assert seen[id(module)] is not pinned
        below = list(module.parameters())
        if pinned and below:
            assert not any(p.requires_grad for p in below)
    with torch.no_grad():
        for buffer, old in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(old)
    for module, mode in modes:
        module.training = mode


def test_check_modes_can_fail():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    fl.freeze(model, "0")
    model[0].weight.requires_grad_(True)
    with pytest.raises(AssertionError):
        check_modes(model)
