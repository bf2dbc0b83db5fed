from __future__ import annotations

import copy
import functools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from zoo import Net, SharedStorage, TiedLm, models, step

import frostline as fl


def held(optimizer):
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


@given(
    models(), st.sampled_from([None, 0.5]), st.sampled_from([(), ("bias", "norm")]), st.booleans()
)
def test_every_trainable_parameter_is_in_exactly_one_group(
    model, layer_decay, no_decay, declare_all
):
    assume(any(p.requires_grad for p in model.parameters()))
    optimizer = fl.optimizer(
        torch.optim.AdamW,
        model,
        lr=0.1,
        layer_decay=layer_decay,
        no_decay=no_decay,
        declare_all=declare_all,
    )
    wanted = [id(p) for p in model.parameters() if p.requires_grad or declare_all]
    assert sorted(held(optimizer)) == sorted(wanted)
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if id(p) in wanted)


def test_names_stand_beside_their_parameters():
    model = Net(1)
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1, no_decay=["bias"])
    named = dict(model.named_parameters())
    for group in optimizer.param_groups:
        assert [id(named[name]) for name in group["param_names"]] == [
            id(p) for p in group["params"]
        ]


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        pytest.param({}, {"all": (0.1, 0.0, 12)}, id="one-group"),
        pytest.param(
            {"weight_decay": 0.5, "no_decay": ["bias", "norm"]},
            {"all": (0.1, 0.5, 4), "no decay": (0.1, 0.0, 8)},
            id="no-decay",
        ),
        pytest.param(
            {"layer_decay": 0.5},
            {
                "layer 0": (0.0125, 0.0, 2),
                "layer 1": (0.025, 0.0, 4),
                "layer 2": (0.05, 0.0, 4),
                "layer 3": (0.1, 0.0, 2),
            },
            id="layer-decay",
        ),
        pytest.param(
            {"options": {"head": {"lr": 1.0}, "head.bias": {"lr": 2.0}}},
            {"all": (0.1, 0.0, 10), "head": (1.0, 0.0, 1), "head, head.bias": (2.0, 0.0, 1)},
            id="later-options-override",
        ),
        pytest.param(
            {"options": {"head": {"lr": 1.0}}, "layer_decay": 0.5, "no_decay": "bias"},
            {
                "layer 0": (0.0125, 0.0, 1),
                "layer 0, no decay": (0.0125, 0.0, 1),
                "layer 1": (0.025, 0.0, 2),
                "layer 1, no decay": (0.025, 0.0, 2),
                "layer 2": (0.05, 0.0, 2),
                "layer 2, no decay": (0.05, 0.0, 2),
                "layer 3, head": (1.0, 0.0, 1),
                "layer 3, head, no decay": (1.0, 0.0, 1),
            },
            id="all-together",
        ),
    ],
)
def test_groups(options, groups):
    optimizer = fl.optimizer(
        torch.optim.AdamW, Net(2), **{"lr": 0.1, "weight_decay": 0.0} | options
    )
    made = {
        g["name"]: (g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups
    }
    assert made == {
        name: (pytest.approx(lr), decay, count) for name, (lr, decay, count) in groups.items()
    }


@pytest.mark.parametrize("model", [TiedLm(), SharedStorage()], ids=["tied", "one-memory"])
def test_tied_parameters_share_a_group(model):
    optimizer = fl.optimizer(
        torch.optim.SGD,
        model,
        lr=0.1,
        options={"transformer.wte" if isinstance(model, TiedLm) else "b": {"lr": 1.0}},
    )
    slow, fast = sorted(optimizer.param_groups, key=lambda group: group["lr"])
    assert fast["param_names"] in (["transformer.wte.weight"], ["a.weight", "b.weight"])
    assert not set(map(id, slow["params"])) & set(map(id, fast["params"]))


CLASSES = [
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.ASGD,
    torch.optim.Adafactor,
    functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
]


@pytest.mark.parametrize("build", CLASSES, ids=lambda c: getattr(c, "__name__", "partial"))
@pytest.mark.parametrize("declare_all", [False, True], ids=["trainable-only", "declare-all"])
def test_every_class_trains_what_is_trainable_and_holds_the_rest(build, declare_all):
    model = Net(1)
    frozen = fl.freeze(model, all_but=["head", "layers.0.norm"])
    optimizer = fl.optimizer(build, model, lr=0.1, declare_all=declare_all)
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        step(model, optimizer)
    frozen.verify()
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved >= {"head.weight", "head.bias", "layers.0.norm.weight"}
    # Adagrad makes the state of all that it holds when it is built, and needs it after a thaw.
    if build is not torch.optim.Adagrad:
        assert not any(optimizer.state.get(p) for p in model.stem.parameters())


def test_a_thawed_parameter_that_was_declared_trains():
    model = Net(1)
    fl.freeze(model, all_but="head")
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1, declare_all=True)
    step(model, optimizer)
    fl.unfreeze(model, "stem", gradients="drop")
    before = model.stem.weight.detach().clone()
    step(model, optimizer)
    assert not torch.equal(before, model.stem.weight)


def test_a_factory():
    def build(groups, lr, note):
        assert note == "mine"
        return torch.optim.SGD([p for group in groups for p in group["params"]], lr=lr)

    optimizer = fl.optimizer(build, nn.Linear(2, 2), lr=0.5, note="mine")
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


def test_names_survive_a_state_dict():
    model = Net(1)
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1, no_decay=["bias"])
    state = optimizer.state_dict()
    again = fl.optimizer(torch.optim.AdamW, model, lr=0.2, no_decay=["bias"])
    again.load_state_dict(state)
    assert [g["name"] for g in again.param_groups] == ["all", "no decay"]
    assert again.param_groups[1]["param_names"] == optimizer.param_groups[1]["param_names"]


class Writer(torch.optim.SGD):
    """Fills missing gradients with zeros and decays, as a published optimizer does."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - 0.1 * group["lr"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda m: fl.optimizer(torch.optim.SGD, m, lr=0.1, momentun=0.9),
            fl.OptimizerError,
            "SGD has no option 'momentun'. Nearest names: 'momentum'",
            id="option",
        ),
        pytest.param(
            lambda m: fl.optimizer(functools.partial(torch.optim.SGD, lr=0.1), m, beta=1),
            fl.OptimizerError,
            "SGD has no option 'beta'",
            id="option-of-a-partial",
        ),
        pytest.param(
            lambda m: fl.optimizer(torch.optim.SGD, m, lr=0.1, options={"head": {"wd": 1}}),
            fl.OptimizerError,
            "no option 'wd' for group 'head'",
            id="group-option",
        ),
        pytest.param(
            lambda m: fl.optimizer(torch.optim.SGD, m, lr=0.1, options={"hed": {"lr": 1}}),
            fl.SelectorError,
            "Nearest names: 'head'",
            id="group-selector",
        ),
        pytest.param(
            lambda m: fl.optimizer(torch.optim.SGD, m, lr=0.1, no_decay=["nrom"]),
            fl.SelectorError,
            "'norm'",
            id="no-decay-typo",
        ),
        pytest.param(
            lambda m: fl.optimizer(torch.optim.SGD, m, lr=0.1, layer_decay=1.5),
            fl.OptimizerError,
            "at most 1, got 1.5",
            id="growing-decay",
        ),
        pytest.param(
            lambda m: fl.optimizer(torch.optim.SGD, m, lr=0.1, options={"head": {"lr": 0.0}}),
            fl.OptimizerError,
            "lr=0 for group 'head' is no freeze",
            id="zero-rate",
        ),
        pytest.param(
            lambda m: fl.optimizer(torch.optim.SGD, m, layer_decay=0.5),
            fl.OptimizerError,
            "pass lr",
            id="decay-of-nothing",
        ),
        pytest.param(
            lambda m: fl.optimizer(lambda groups: 3, m), fl.OptimizerError, "returned int", id="int"
        ),
        pytest.param(
            lambda m: fl.optimizer(torch.optim.SGD, m.requires_grad_(False), lr=0.1),
            fl.OptimizerError,
            "no trainable parameter",
            id="nothing",
        ),
        pytest.param(
            lambda m: fl.optimizer(torch.optim.LBFGS, m, declare_all=True),
            fl.OptimizerError,
            "LBFGS moves parameters that have no gradient",
            id="lbfgs",
        ),
        pytest.param(
            lambda m: fl.optimizer(Writer, m, lr=0.1, declare_all=True),
            fl.OptimizerError,
            "Writer moves parameters that have no gradient",
            id="writer",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(Net(1))
    assert isinstance(caught.value, ValueError)


def test_the_trial_leaves_the_random_state_alone():
    state = torch.random.get_rng_state()
    fl.optimizer(torch.optim.AdamW, Net(1), lr=0.1, declare_all=True)
    torch.random.set_rng_state(state)
    model = Net(1)
    state = torch.random.get_rng_state()
    fl.optimizer(torch.optim.AdamW, model, lr=0.1, declare_all=True)
    assert torch.equal(state, torch.random.get_rng_state())
