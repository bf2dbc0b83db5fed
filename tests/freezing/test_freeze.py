from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from zoo import Net, TiedLm, step

import frostline as fl


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_freeze_what():
    model = Net(1)
    frozen = fl.freeze(model, ["stem", "layers.0.fc"])
    assert frozen.names == ("stem.weight", "stem.bias", "layers.0.fc.weight", "layers.0.fc.bias")
    assert trainable(model) == {
        "layers.0.norm.weight",
        "layers.0.norm.bias",
        "head.weight",
        "head.bias",
    }
    assert frozen.buffers == ()


def test_all_but():
    model = Net(1)
    frozen = fl.freeze(model, all_but="head")
    assert trainable(model) == {"head.weight", "head.bias"}
    assert frozen.buffers == tuple(
        f"layers.0.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    )
    assert str(frozen.plan) == "freeze: **; train: head"


def test_all_but_thaws_what_was_frozen_by_hand():
    model = Net(1)
    model.requires_grad_(False)
    fl.freeze(model, all_but="head")
    assert trainable(model) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda m: fl.freeze(m, "**"), fl.PlanError, "nothing to train", id="all"),
        pytest.param(lambda m: fl.freeze(m), fl.PlanError, "takes either", id="neither"),
        pytest.param(lambda m: fl.freeze(m, "a", all_but="b"), fl.PlanError, "either", id="both"),
        pytest.param(lambda m: fl.freeze(m, "hed"), fl.SelectorError, "'head'", id="typo"),
        pytest.param(
            lambda m: fl.freeze(m, all_but=["head", "laiers"]),
            fl.SelectorError,
            "laiers",
            id="one-of-two",
        ),
        pytest.param(
            lambda m: fl.unfreeze(m, "hed"), fl.SelectorError, "'head'", id="unfreeze-typo"
        ),
        pytest.param(
            lambda m: fl.freeze(m, "head", gradients="no"), ValueError, "got 'no'", id="word"
        ),
    ],
)
def test_refusals_change_nothing(call, error, message):
    model = Net(1)
    with pytest.raises(error, match=message):
        call(model)
    assert trainable(model) == {name for name, _ in model.named_parameters()}
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_everything_on_request():
    model = Net(1)
    frozen = fl.freeze(model, "**", everything=True)
    assert trainable(model) == set()
    assert len(frozen.names) == 8


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_parameter_is_refused():
    with pytest.raises(fl.PlanError, match=r"0.weight is not initialised yet"):
        fl.freeze(nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 2)), "0")


def test_frozen_weights_and_statistics_hold_through_training():
    model = Net(2)
    frozen = fl.freeze(model, all_but="head")
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1, weight_decay=0.5)
    for _ in range(3):
        model.train()
        step(model, optimizer)
    proof = frozen.verify()
    assert (proof.parameters, proof.buffers) == (10, 6)


def test_verify_names_what_moved():
    model = Net(1)
    frozen = fl.freeze(model, all_but="head")
    model.layers[0].norm.running_var.data.add_(1)
    with pytest.raises(fl.FrozenChangedError, match=r"buffer layers.0.norm.running_var: 8 of 8"):
        frozen.verify()


@pytest.mark.parametrize(
    "replace",
    [
        pytest.param(lambda m: setattr(m, "stem", nn.Linear(8, 8)), id="by-a-fresh-module"),
        pytest.param(lambda m: setattr(m, "stem", copy.deepcopy(m.stem)), id="by-a-copy"),
        pytest.param(lambda m: delattr(m, "stem"), id="deleted"),
    ],
)
def test_verify_names_a_module_that_hangs_there_no_more(replace):
    model = Net(1)
    frozen = fl.freeze(model, ["stem", "layers.0"])
    replace(model)
    with pytest.raises(
        fl.FrozenChangedError, match=r"stem.weight: .*removed or replaced"
    ) as caught:
        frozen.verify()
    assert len(caught.value.changes) == 2


def test_verify_names_a_conversion():
    model = Net(1)
    frozen = fl.freeze(model, "stem")
    model.half()
    with pytest.raises(fl.FrozenChangedError, match=r"from torch.float32 to torch.float16"):
        frozen.verify()


def test_verify_needs_something_frozen():
    model = Net(1)
    frozen = fl.freeze(model, "stem")
    frozen.undo()
    with pytest.raises(fl.TransitionError, match="it was undone or thawed"):
        frozen.verify()
    with pytest.raises(fl.TransitionError, match="it froze nothing"):
        fl.unfreeze(model, "stem").verify()


def test_a_thawed_tensor_may_move_and_a_refrozen_one_may_not():
    model = Net(1)
    frozen = fl.freeze(model, all_but="head")
    thawed = fl.unfreeze(model, "layers.0")
    with torch.no_grad():
        model.layers[0].fc.weight.add_(1)
        model.layers[0].norm.running_mean.add_(1)
    assert (frozen.verify().parameters, frozen.buffers) == (2, ())
    thawed.undo()
    assert frozen.verify().tensors == 9
    model.layers[0].norm.running_mean.add_(1)
    with pytest.raises(fl.FrozenChangedError, match="running_mean"):
        frozen.verify()


def test_a_tied_tensor_is_frozen_under_any_name():
    model = TiedLm()
    frozen = fl.freeze(model, "lm_head")
    assert frozen.names == ("transformer.wte.weight",)
    assert not model.lm_head.weight.requires_grad


def test_an_integer_parameter_stays_as_it_is():
    model = Net(1)
    model.stem.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    fl.freeze(model, all_but="stem")
    assert [model.stem.weight.requires_grad, model.stem.bias.requires_grad] == [False, True]


def test_the_context_manager_undoes_even_after_an_error():
    model = Net(1)

    def fail():
        with fl.freeze(model, "stem"):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.stem.weight.requires_grad


def test_a_dropped_handle_leaves_the_freeze_and_frees_the_model():
    model = Net(1)
    fl.freeze(model, "stem")
    gc.collect()
    assert not model.stem.weight.requires_grad
    gone = weakref.ref(model)
    weight = weakref.ref(model.stem.weight)
    del model
    gc.collect()
    assert gone() is None
    assert weight() is None


def test_the_table_a_person_reads():
    model = Net(2)
    frozen = fl.freeze(model, ["stem", "layers.0", "layers.1.fc"])
    rows = [line.split() for line in str(frozen).splitlines() if "─" not in line]
    assert [row for row in rows if row] == [
        ["part", "state", "tensors", "parameters", "bytes"],
        ["stem", "frozen", "2", "72", "288", "B"],
        ["layers.0", "frozen", "4", "88", "352", "B"],
        ["layers.1.fc", "frozen", "2", "72", "288", "B"],
        ["layers.1.norm", "trainable", "2", "16", "64", "B"],
        ["head", "trainable", "2", "27", "108", "B"],
        ["total", "frozen", "8", "232", "928", "B"],
        ["total", "trainable", "4", "43", "172", "B"],
    ]
    assert repr(frozen) == (
        "<Frozen 'freeze: any: ['stem', 'layers.0', 'layers.1.fc']': 8 parameters held>"
    )


@pytest.mark.parametrize("call", [fl.freeze, fl.unfreeze], ids=["freeze", "unfreeze"])
class TestPendingGradients:
    def backward(self):
        model = Net(1)
        model(torch.randn(4, 8)).sum().backward()
        return model

    def test_refused(self, call):
        model = self.backward()
        with pytest.raises(fl.TransitionError, match=r"stem.weight has a gradient"):
            call(model, "stem")
        assert model.stem.weight.grad is not None

    def test_dropped_on_request(self, call):
        model = self.backward()
        call(model, "stem", gradients="drop")
        assert all(p.grad is None for p in model.parameters())

    def test_zeros_are_not_pending(self, call):
        model = self.backward()
        model.zero_grad(set_to_none=False)
        call(model, "stem")
        assert not model.stem.weight.grad if call is fl.freeze else True


def test_frozen_parameters_have_no_gradient_not_even_zeros():
    model = Net(1)
    model(torch.randn(4, 8)).sum().backward()
    model.zero_grad(set_to_none=False)
    fl.freeze(model, "stem")
    assert model.stem.weight.grad is None
    assert model.head.weight.grad is not None
