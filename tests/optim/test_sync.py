from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

import frostline as fl


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(3, 4, bias=False),
        nn.Tanh(),
        nn.Linear(4, 4, bias=False),
        nn.Linear(4, 2, bias=False),
    )


def loss_of(model):
    return model(torch.linspace(-1, 1, 15).reshape(5, 3)).square().mean()


def step(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad()


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(before, model):
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


def held_names(optimizer, model):
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names.get(id(p), "?") for p in group["params"]] for group in optimizer.param_groups]


def assert_covered(optimizer, model):
    """Each trainable parameter is in exactly one group, by identity; state is of members only."""
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    wanted = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(held) == sorted(wanted)
    assert {id(p) for p in optimizer.state} <= set(held)
    for group in optimizer.param_groups:
        if "param_names" in group:
            named = dict(model.named_parameters())
            assert [id(named[n]) for n in group["param_names"]] == list(map(id, group["params"]))


def adopt(optimizer):
    """An optimizer of the same class and groups, from the other's ``state_dict``."""
    again = copy.deepcopy(optimizer)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return again


o = torch.optim
OPTIMIZERS = {
    "SGD": o.SGD,
    "SGD-momentum": functools.partial(o.SGD, momentum=0.9, weight_decay=0.1),
    "SGD-nesterov": functools.partial(o.SGD, momentum=0.9, nesterov=True),
    "SGD-foreach": functools.partial(o.SGD, momentum=0.9, foreach=True),
    "SGD-fused": functools.partial(o.SGD, momentum=0.9, fused=True),
    "Adam": o.Adam,
    "Adam-amsgrad": functools.partial(o.Adam, amsgrad=True),
    "Adam-foreach": functools.partial(o.Adam, foreach=True),
    "Adam-fused": functools.partial(o.Adam, fused=True),
    "Adam-tensor-lr": lambda groups, lr: o.Adam(groups, lr=torch.tensor(lr)),
    "AdamW": functools.partial(o.AdamW, weight_decay=0.1),
    "AdamW-foreach": functools.partial(o.AdamW, foreach=True),
    "AdamW-fused": functools.partial(o.AdamW, fused=True),
    "RMSprop": functools.partial(o.RMSprop, momentum=0.9, centered=True),
    "Adagrad": functools.partial(o.Adagrad, initial_accumulator_value=0.5),
    "Adagrad-fused": functools.partial(o.Adagrad, fused=True),
    "Adadelta": functools.partial(o.Adadelta, rho=0.5),
    "Adamax": o.Adamax,
    "NAdam": o.NAdam,
    "RAdam": o.RAdam,
    "ASGD": o.ASGD,
    "Rprop": o.Rprop,
    "Adafactor": o.Adafactor,
    "Muon": o.Muon,
}
every_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
LAYOUTS = {"one-group": {}, "by-layer": {"layer_decay": 0.5}}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@every_optimizer
def test_freeze_and_thaw_in_the_middle_of_training(build, layout):
    model = make_model()
    optimizer = fl.optimizer(build, model, lr=0.05, **layout)
    step(model, optimizer)
    frozen = fl.freeze(model, "0")
    report = fl.sync(model, optimizer)
    assert (report.dropped, report.kept) == (("0.weight",), ("2.weight", "3.weight"))
    assert_covered(optimizer, model)
    adopt(optimizer)
    before = values(model)
    for _ in range(3):
        step(model, optimizer)
    frozen.verify()
    assert moved(before, model) == {"2.weight", "3.weight"}

    frozen.undo()
    report = fl.sync(model, optimizer)
    assert (report.added, report.dropped) == (("0.weight",), ())
    assert_covered(optimizer, model)
    adopt(optimizer)
    before = values(model)
    step(model, optimizer)
    assert moved(before, model) == {"0.weight", "2.weight", "3.weight"}
    assert fl.sync(model, optimizer).kept == ("0.weight", "2.weight", "3.weight")


@every_optimizer
def test_a_thawed_parameter_moves_as_under_a_new_optimizer(build):
    """Fresh state, the constructor's included: its first steps are those of an optimizer of its
    own."""
    model = make_model()
    optimizer = fl.optimizer(build, model, lr=0.05)
    for _ in range(3):
        step(model, optimizer)
    fl.freeze(model, "0")
    fl.sync(model, optimizer)
    fl.unfreeze(model, "0")
    fl.sync(model, optimizer)
    twin = nn.Parameter(model[0].weight.detach().clone())
    alone = build([twin], lr=0.05)
    for scale in (1.0, 2.0):
        model[0].weight.grad = torch.full((4, 3), scale)
        twin.grad = torch.full((4, 3), scale)
        optimizer.step()
        alone.step()
    assert torch.equal(model[0].weight, twin)


@every_optimizer
def test_state_kept_on_request(build):
    """Frozen for a while and thawed: as if those steps had not been, for that parameter."""
    model = make_model()
    optimizer = fl.optimizer(build, model, lr=0.05)
    for _ in range(2):
        step(model, optimizer)
    before = copy.deepcopy(optimizer.state[model[0].weight])
    frozen = fl.freeze(model, "0")
    report = fl.sync(model, optimizer, state="keep")
    assert (report.declared, report.dropped) == (("0.weight",), ())
    step(model, optimizer)
    frozen.verify()
    frozen.undo()
    assert fl.sync(model, optimizer, state="keep").kept == ("0.weight", "2.weight", "3.weight")
    after = optimizer.state[model[0].weight]
    assert before.keys() == after.keys()
    for key, value in before.items():
        same = torch.equal(value, after[key]) if torch.is_tensor(value) else value == after[key]
        assert same, key


@every_optimizer
def test_declared_parameters_stay_without_state(build):
    model = make_model()
    optimizer = fl.optimizer(build, model, lr=0.05, declare_all=True)
    for _ in range(3):
        step(model, optimizer)
    frozen = fl.freeze(model, "0")
    report = fl.sync(model, optimizer)
    assert (report.declared, report.dropped) == (("0.weight",), ())
    assert model[0].weight.grad is None
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
    # What a constructor gives (Adagrad) is there again, what the steps made is gone.
    fresh = build([model[0].weight], lr=0.05).state
    assert len(optimizer.state.get(model[0].weight, {})) == len(fresh.get(model[0].weight, {}))
    step(model, optimizer)
    adopt(optimizer)
    frozen.undo()
    fl.sync(model, optimizer)
    before = values(model)
    step(model, optimizer)
    assert moved(before, model) == {"0.weight", "2.weight", "3.weight"}


def test_adagrad_state_is_made_for_what_joins():
    model = make_model()
    fl.freeze(model, "0")
    optimizer = fl.optimizer(torch.optim.Adagrad, model, initial_accumulator_value=0.5)
    fl.unfreeze(model, "0")
    fl.sync(model, optimizer)
    state = optimizer.state[model[0].weight]
    assert torch.equal(state["sum"], torch.full((4, 3), 0.5))
    assert float(state["step"]) == 0


def test_fused_sgd_with_dampening_takes_nothing_in():
    """Its first step knows no dampening, and torch can't mix first steps with later ones."""
    model = make_model()
    fl.freeze(model, "0")
    optimizer = fl.optimizer(
        torch.optim.SGD, model, lr=0.1, momentum=0.9, dampening=0.5, fused=True
    )
    step(model, optimizer)
    fl.unfreeze(model, "0")
    with pytest.raises(fl.OptimizerError, match="fused=False"):
        fl.sync(model, optimizer)
    assert held_names(optimizer, model) == [["2.weight", "3.weight"]]


def test_adam_state_of_a_frozen_parameter_is_freed():
    model = make_model()
    optimizer = fl.optimizer(torch.optim.AdamW, model)
    step(model, optimizer)
    fl.freeze(model, "0")
    fl.sync(model, optimizer)
    assert len(optimizer.state) == 2


@pytest.mark.parametrize("part", ["0", "3"], ids=["first", "last"])  # the first has the state
def test_lbfgs_forgets_its_history(part):
    model = make_model()
    optimizer = fl.optimizer(torch.optim.LBFGS, model, lr=0.1)
    step(model, optimizer)
    assert fl.sync(model, optimizer).added == ()
    assert optimizer.state, "nothing changed, so the history stays"
    frozen = fl.freeze(model, part)
    fl.sync(model, optimizer)
    assert not optimizer.state
    for _ in range(2):
        step(model, optimizer)
    frozen.verify()
    frozen.undo()
    fl.sync(model, optimizer)
    before = values(model)
    step(model, optimizer)
    assert moved(before, model) == {"0.weight", "2.weight", "3.weight"}


def test_sparse_adam():
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Embedding(5, 2, sparse=True))
    fl.freeze(model, "0")
    optimizer = fl.optimizer(torch.optim.SparseAdam, model, lr=0.1)
    ids = torch.tensor([1, 3])
    for expected in ({"1.weight"}, {"0.weight", "1.weight"}):
        before = values(model)
        sum(part(ids).sum() for part in model).backward()
        optimizer.step()
        model.zero_grad()
        assert moved(before, model) == expected
        fl.unfreeze(model, "0")
        fl.sync(model, optimizer)
    optimizer.state_dict()


# --- groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [{}, {"layer_decay": 0.5, "no_decay": ["bias"]}])
def test_a_synchronised_optimizer_is_the_one_that_would_be_built_now(layout):
    def build(model):
        return fl.optimizer(torch.optim.AdamW, model, lr=0.1, **layout)

    def groups(optimizer):
        return [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    fl.freeze(model, ["0", "2", "1.bias"])
    optimizer = build(model)
    fl.unfreeze(model, "1")
    fl.unfreeze(model, "0")
    fl.freeze(model, "3")
    fl.sync(model, optimizer)
    assert groups(optimizer) == groups(build(model))
    assert held_names(optimizer, model) == held_names(build(model), model)


class Deep(nn.Module):
    """Two named halves with norms, for the question where a parameter belongs."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict(
            {k: nn.ModuleDict({"fc": nn.Linear(2, 2), "ln": nn.LayerNorm(2)}) for k in "ab"}
        )
        self.head = nn.Linear(2, 2)


def by_kind(model):
    """Weights decay; biases and norms don't."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors}]


def by_half(model):
    def part(module):
        return [p for p in module.parameters() if p.requires_grad]

    return [{"params": part(model.backbone), "lr": 0.01}, {"params": part(model.head)}]


def by_whim(model):
    """Biases in both groups, so that the kind alone does not decide."""
    apart = [p for n, p in model.backbone.named_parameters() if p.requires_grad and "bias" in n]
    ids = set(map(id, apart))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    return [{"params": rest}, {"params": apart, "lr": 0.01}]


@pytest.mark.parametrize(
    ("groups", "trained", "thawed", "index"),
    [
        pytest.param(by_kind, ["head", "backbone.b"], "backbone.a.fc.weight", 0, id="kind-matrix"),
        pytest.param(by_kind, ["head", "backbone.b"], "backbone.a.fc.bias", 1, id="kind-bias"),
        pytest.param(by_kind, ["head", "backbone.b"], "backbone.a.ln.weight", 1, id="kind-norm"),
        pytest.param(
            by_kind,
            ["head.weight", "backbone.a.fc.bias"],
            "backbone.a.fc.weight",
            0,
            id="kind-before-path",
        ),
        pytest.param(
            by_whim, ["head", "backbone.b"], "backbone.a.fc.bias", 1, id="kind-before-distance"
        ),
        pytest.param(by_half, ["head", "backbone.b"], "backbone.a.fc.weight", 0, id="half"),
        pytest.param(
            by_half, ["head", "backbone.a.fc.weight"], "backbone.a.fc.bias", 0, id="half-bias"
        ),
        pytest.param(by_half, ["head.bias", "backbone.b"], "head.weight", 1, id="half-head"),
    ],
)
def test_the_nearest_sibling(groups, trained, thawed, index):
    model = Deep()
    fl.freeze(model, all_but=trained)
    optimizer = torch.optim.SGD(groups(model), lr=0.1)
    fl.unfreeze(model, thawed)
    report = fl.sync(model, optimizer)
    assert (report.added, report.groups) == ((thawed,), (f"group {index}",))
    assert any(p is model.get_parameter(thawed) for p in optimizer.param_groups[index]["params"])


def test_a_hand_built_group_gets_back_what_left_it():
    """Even if the group is empty meanwhile, and every sibling is elsewhere."""
    model = Deep()
    optimizer = torch.optim.SGD(by_half(model), lr=0.1, momentum=0.9)
    whole = held_names(optimizer, model)
    frozen = fl.freeze(model, "backbone")
    fl.sync(model, optimizer)
    assert held_names(optimizer, model)[0] == []
    frozen.undo()
    fl.sync(model, copy.deepcopy(optimizer))
    fl.sync(model, optimizer)
    assert held_names(optimizer, model) == whole


def test_a_parameter_that_was_not_there_when_the_optimizer_was_built():
    model = Deep()
    optimizer = fl.optimizer(
        torch.optim.SGD, model, lr=0.1, options={"backbone": {"lr": 0.01}, "head": {"lr": 1.0}}
    )
    model.backbone["b"]["adapter"] = nn.Linear(2, 2)
    report = fl.sync(model, optimizer)
    assert report.groups == ("backbone", "backbone")
    assert str(report) == (
        "added 2 (backbone.b.adapter.weight, backbone.b.adapter.bias into 'backbone'); kept 10"
    )


def test_tied_parameters_join_once():
    model = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4)})
    model["head"].weight = model["embed"].weight
    fl.freeze(model, all_but="head.bias")
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    fl.unfreeze(model, "head")
    assert fl.sync(model, optimizer).added == ("embed.weight",)
    assert_covered(optimizer, model)


def test_a_factory_that_regroups():
    def split(groups, lr):
        parameters = [p for group in groups for p in group["params"]]
        wide = [p for p in parameters if p.ndim > 1]
        thin = [p for p in parameters if p.ndim < 2]
        return torch.optim.SGD([{"params": wide}, {"params": thin, "momentum": 0.5}], lr=lr)

    model = Deep()
    fl.freeze(model, "backbone.a")
    optimizer = fl.optimizer(split, model, lr=0.1)
    fl.unfreeze(model, "backbone.a.ln")
    report = fl.sync(model, optimizer)
    assert all(p.ndim == 1 for p in optimizer.param_groups[1]["params"])
    assert len(report.added) == 2
    assert_covered(optimizer, model)


# --- what is not in the model (any more) ------------------------------------------------------


def reassign(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def named(model):
    return torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)


def unnamed(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def ours(model):
    return fl.optimizer(torch.optim.SGD, model, lr=0.1, momentum=0.9)


NAMES = ("0.weight", "2.weight", "3.weight")


@pytest.mark.parametrize(
    ("build", "replaced", "added"),
    [
        pytest.param(ours, NAMES, (), id="frostline"),
        pytest.param(named, NAMES, (), id="named"),
        pytest.param(unnamed, (), NAMES, id="unnamed"),
    ],
)
@pytest.mark.parametrize("state", ["fresh", "keep"])
def test_dead_tensors_after_assign(build, replaced, added, state):
    model = make_model()
    optimizer = build(model)
    step(model, optimizer)
    momentum = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    reassign(model)
    report = fl.sync(model, optimizer, state=state)
    assert (report.replaced, report.added, report.foreign) == (replaced, added, 0)
    assert_covered(optimizer, model)
    kept = [optimizer.state.get(p, {}).get("momentum_buffer") for p in model.parameters()]
    if replaced and state == "keep":
        assert all(torch.equal(a, b) for a, b in zip(momentum, kept, strict=True))
    else:
        assert kept == [None] * 3
    before = values(model)
    step(model, optimizer)
    assert moved(before, model) == set(NAMES)


@pytest.mark.parametrize("build", [ours, named, unnamed], ids=["frostline", "named", "unnamed"])
def test_a_new_head(build):
    """Another size under the same name: its state can't be that of the old one."""
    model = make_model()
    optimizer = build(model)
    step(model, optimizer)
    model[3] = nn.Linear(4, 7, bias=False)
    fl.sync(model, optimizer, state="keep")
    assert_covered(optimizer, model)
    assert model[3].weight not in optimizer.state
    step(model, optimizer)


def test_a_layer_that_was_removed():
    model = make_model()
    optimizer = ours(model)
    model[3] = nn.Identity()
    assert fl.sync(model, optimizer).dropped == ("3.weight",)
    assert_covered(optimizer, model)


def test_other_models_and_lone_tensors_are_left_alone():
    model, teacher = make_model(), make_model(1)
    temperature = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD(
        [{"params": [*model.parameters(), temperature]}, {"params": teacher.parameters()}], lr=0.1
    )
    fl.freeze(model, "0")
    report = fl.sync(model, optimizer)
    assert (report.dropped, report.foreign) == (("0.weight",), 4)
    assert any(p is temperature for p in optimizer.param_groups[0]["params"])
    assert len(optimizer.param_groups[1]["params"]) == 3
    assert "4 that are not this model's left alone" in str(report)


def test_two_models_with_the_same_names_in_one_optimizer():
    one, other = make_model(), make_model(1)
    optimizer = fl.optimizer(torch.optim.SGD, one, lr=0.1)
    optimizer.add_param_group(
        {"params": list(other.parameters()), "param_names": list(NAMES), "lr": 1.0}
    )
    frozen = [fl.freeze(model, "0") for model in (one, other)]
    for model in (one, other):
        assert fl.sync(model, optimizer).dropped == ("0.weight",)
    for freeze in frozen:
        freeze.undo()
    assert fl.sync(other, optimizer).groups == ("group 1",)
    assert fl.sync(one, optimizer).groups == ("all",)
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 3]


def test_what_one_model_declared_says_nothing_of_another():
    one, other = make_model(), make_model(1)
    optimizer = fl.optimizer(torch.optim.SGD, one, lr=0.1)
    frozen = fl.freeze(other, "0")
    trains = [p for p in other.parameters() if p.requires_grad]
    optimizer.add_param_group({"params": trains, "param_names": list(NAMES[1:])})
    frozen.undo()
    assert fl.sync(other, optimizer).groups == ("group 1",)


def test_what_is_dropped_by_hand_leaves_no_state():
    model = make_model()
    optimizer = unnamed(model)
    step(model, optimizer)
    model[0].weight.requires_grad_(False)
    del optimizer.param_groups[0]["params"][0]
    with pytest.raises(KeyError):
        optimizer.state_dict()
    fl.sync(model, optimizer)
    assert len(optimizer.state_dict()["state"]) == 2


# --- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_a_copied_model_and_optimizer_stay_in_step(copied):
    model = make_model()
    fl.freeze(model, ["0", "2"])
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1, layer_decay=0.5)
    step(model, optimizer)
    model, optimizer = copied((model, optimizer))
    fl.unfreeze(model, "0")
    assert fl.sync(model, optimizer).groups == ("layer 0",)
    assert_covered(optimizer, model)


def test_a_wrapped_model_is_the_same_model():
    model = make_model()
    fl.freeze(model, "0")
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    fl.unfreeze(model, "0")
    assert fl.sync(nn.DataParallel(model), optimizer).added == ("0.weight",)


# --- gradients and refusals -----------------------------------------------------------------------


def test_a_frozen_parameter_loses_its_gradient():
    model = make_model()
    optimizer = unnamed(model)
    loss_of(model).backward()
    model[0].weight.requires_grad_(False)  # by hand, and the gradient stays
    fl.sync(model, optimizer)
    assert model[0].weight.grad is None
    assert model[2].weight.grad is not None


def test_piled_up_gradients_are_refused_or_dropped():
    model = make_model()
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)
    loss_of(model).backward()
    with pytest.raises(fl.TransitionError, match=r"0\.weight joins .* has a gradient"):
        fl.sync(model, optimizer)
    assert held_names(optimizer, model) == [["3.weight"]]
    fl.sync(model, optimizer, gradients="drop")
    assert model[0].weight.grad is None
    assert model[3].weight.grad is not None
    assert held_names(optimizer, model) == [["3.weight", "0.weight", "2.weight"]]


class Writer(torch.optim.SGD):
    """Decays what it holds, gradient or not."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - group["lr"])


def with_bias():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))


def muon_and_a_bias():
    model = with_bias()
    fl.freeze(model, "0.bias")
    optimizer = fl.optimizer(torch.optim.Muon, model, lr=0.1)
    fl.unfreeze(model, "0.bias")
    return model, optimizer, {}


def keeping(build):
    def case():
        model = make_model()
        optimizer = build(model.parameters(), lr=0.1)
        fl.freeze(model, "0")
        return model, optimizer, {"state": "keep"}

    return case


def strangers():
    model, other = make_model(), make_model(1)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    optimizer.lives = other  # tensors of no living model would be taken for dead ones
    return model, optimizer, {}


def a_part():
    model = nn.Sequential(make_model(), nn.Linear(2, 2))
    fl.freeze(model, "0.0")
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    fl.unfreeze(model, "0.0")
    return model[0], optimizer, {}


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        pytest.param(
            muon_and_a_bias, fl.OptimizerError, r"0\.bias can't join group 'all'.*Muon", id="muon"
        ),
        pytest.param(
            keeping(torch.optim.LBFGS), fl.OptimizerError, "LBFGS moves parameters", id="lbfgs-keep"
        ),
        pytest.param(keeping(Writer), fl.OptimizerError, "Writer moves param", id="writer-keep"),
        pytest.param(strangers, fl.OptimizerError, "no group of SGD can be told", id="strangers"),
        pytest.param(a_part, fl.OptimizerError, "not a part of it", id="a-part"),
        pytest.param(
            lambda: (make_model(), unnamed(make_model()), {"state": "old"}),
            ValueError,
            "'fresh' or 'keep', got 'old'",
            id="word",
        ),
    ],
)
def test_a_refusal_changes_nothing(case, error, message):
    model, optimizer, options = case()
    members = [list(map(id, group["params"])) for group in optimizer.param_groups]
    rest = [
        {k: copy.copy(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups
    ]
    with pytest.raises(error, match=message):
        fl.sync(model, optimizer, **options)
    assert members == [list(map(id, group["params"])) for group in optimizer.param_groups]
    assert rest == [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def test_a_report_in_words():
    model = make_model()
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1, layer_decay=0.5)
    fl.freeze(model, ["0", "2"])
    assert str(fl.sync(model, optimizer)) == "dropped 2 (0.weight, 2.weight); kept 1"
    fl.unfreeze(model, ["0", "2"])
    reassign(model)
    optimizer.state_dict()
    assert str(fl.sync(model, optimizer)) == (
        "added 2 (0.weight into 'layer 0', 2.weight into 'layer 1'); replaced 1 (3.weight); kept 0"
    )


def test_what_is_kept_on_purpose_is_marked_until_it_thaws():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=0.1)
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    fl.freeze(model, "0")
    fl.sync(model, optimizer, state="keep")
    assert optimizer.param_groups[0]["kept_names"] == ["0.weight", "0.bias"]
    fl.unfreeze(model, "0")
    fl.sync(model, optimizer)
    assert "kept_names" not in optimizer.param_groups[0]


@pytest.mark.parametrize("build", [lrs.StepLR, lrs.MultiStepLR, lrs.ExponentialLR])
def test_a_scheduler_that_goes_by_no_list_may_have_missed_a_group(build):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    scheduler = build(optimizer, [1] if build is lrs.MultiStepLR else 1)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    assert fl.sync(model, optimizer, scheduler).kept
