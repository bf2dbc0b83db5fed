from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from zoo import Net

import frostline as fl


class Recorder(nn.Module):
    """Remembers the mode in which it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ran_in_train_mode: list[bool] = []

    def forward(self, x):
        self.ran_in_train_mode.append(self.training)
        return x


class Watched(nn.Module):
    """A frozen-to-be backbone and a head, each with a parameterless module that has a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(8, 8), Recorder(), nn.Sequential(nn.BatchNorm1d(8), Recorder())
        )
        self.before_head = Recorder()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.before_head(self.backbone(x)))

    def modes(self):
        """Run in train mode; the modes of the two below the backbone, then of the live one."""
        self.train()
        self(torch.randn(4, 8))
        inside, deeper = self.backbone[1], self.backbone[2][1]
        return [m.ran_in_train_mode[-1] for m in (inside, deeper, self.before_head)]


def by_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [
    pytest.param(lambda m: m, id="itself"),
    pytest.param(copy.deepcopy, id="deepcopy"),
    pytest.param(lambda m: pickle.loads(pickle.dumps(m)), id="pickle"),
    pytest.param(by_torch_save, id="torch-save"),
]


@pytest.mark.parametrize("copied", COPIES)
def test_frozen_modules_run_in_eval_mode_and_live_ones_do_not(copied):
    model = Watched()
    fl.freeze(model, "backbone")
    assert copied(model).modes() == [False, False, True]


@pytest.mark.parametrize("copied", COPIES)
def test_a_thaw_ends_it_in_copies_too(copied):
    model = Watched()
    fl.freeze(model, "backbone")
    model = copied(model)
    fl.unfreeze(model, "backbone.2")
    # The backbone as a whole trains again, and what has no parameters of its own goes with it;
    # its Linear is still frozen.
    assert model.modes() == [True, True, True]
    assert model.backbone[0].training is False


def test_a_copy_can_be_frozen_further():
    model = Watched()
    fl.freeze(model, "backbone.0")
    copied = copy.deepcopy(model)
    fl.freeze(copied, "backbone.2")
    assert copied.modes() == [False, False, True]
    assert model.modes() == [True, True, True]


def test_modes_are_set_at_once_and_statistics_hold():
    model = Net(1)
    fl.freeze(model, all_but="head")
    assert [m.training for m in (model.layers[0].norm, model.layers[0].drop, model.drop)] == [
        False,
        False,
        True,
    ]
    mean = model.layers[0].norm.running_mean.clone()
    model.train()
    model(torch.randn(4, 8))
    assert torch.equal(mean, model.layers[0].norm.running_mean)


def test_an_inner_module_called_by_itself_is_pinned():
    model = Net(1)
    fl.freeze(model, "layers")
    model.train()
    count = model.layers[0].norm.num_batches_tracked.item()
    model.layers[0].norm(torch.randn(4, 8))
    assert model.layers[0].norm.num_batches_tracked.item() == count


def test_a_child_whose_mode_is_read_but_that_is_not_called():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return nn.functional.dropout(self.linear(x), 0.5, self.drop.training)

    model = nn.Sequential(Functional(), nn.Linear(8, 3))
    fl.freeze(model, "0")
    model.train()
    x = torch.randn(4, 8)
    assert torch.equal(model[0](x), model[0].linear(x))


def test_opting_out():
    model = Net(1)
    frozen = fl.freeze(model, all_but="head", pin_eval=False, hold_statistics=False)
    assert all(m.training and not m._forward_pre_hooks for m in model.modules())
    assert frozen.names[0] == "stem.weight"


def test_batchnorm_whose_bias_trains_is_not_frozen():
    model = Net(1)
    fl.freeze(model, "layers.0.norm.weight")
    assert model.layers[0].norm.training


def test_what_was_frozen_by_hand_and_never_named_keeps_its_mode():
    model = Net(1)
    model.stem.requires_grad_(False)
    fl.freeze(model, "layers")
    assert [model.stem.training, model.layers[0].training] == [True, False]


def test_hand_frozen_and_named_make_one_frozen_module():
    model = Net(1)
    model.layers[0].norm.requires_grad_(False)
    fl.freeze(model, "layers.0.fc")
    assert [m.training for m in (model.layers[0], model.layers[0].norm, model.layers[0].drop)] == [
        False,
        False,
        False,
    ]


def shared_dropout():
    shared = nn.Dropout(0.5)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(8, 8), shared), nn.Sequential(nn.Linear(8, 8), shared)
    )
    fl.freeze(model, model[0])
    return model


@pytest.mark.parametrize("copied", COPIES)
def test_one_dropout_in_a_frozen_and_in_a_live_part(copied):
    model = copied(shared_dropout())
    model.train()
    x = torch.ones(4, 8)
    for _ in range(2):
        assert torch.equal(model[0](x), model[0][0](x))
        assert (model[1](x) == 0).any()


def test_one_dropout_goes_back_to_its_mode_after_an_error():
    model = shared_dropout()
    model.train()
    with pytest.raises(RuntimeError):
        model[0](torch.ones(4, 5))
    assert model[1][1].training


def test_undo_takes_the_second_hook_along():
    model = shared_dropout()
    fl.unfreeze(model, model[0])
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_state_dict_keys_classes_and_parameters_stay():
    model = Net(2)
    keys, classes = list(model.state_dict()), [type(m) for m in model.modules()]
    parameters = [id(p) for p in model.parameters()]
    fl.freeze(model, all_but="head")
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model.modules()] == classes
    assert [id(p) for p in model.parameters()] == parameters
