from __future__ import annotations

import copy
import functools
import io

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

import frostline as fl


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))


def saved(value):
    """Through a file, read without unpickling anything but tensors and plain values."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(one, other):
    """Equal to the last bit, through lists and dicts."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def batch(at):
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(at))


class Run:
    """Twelve steps with a thaw after four and a freeze after eight, stopped and resumed at will."""

    def __init__(self, build, schedule, frozen=("0", "2.weight")):
        self.model, self.build, self.schedule = make_model(), build, schedule
        self.start(frozen)

    def start(self, frozen):
        if frozen:
            fl.freeze(self.model, list(frozen))
        self.optimizer = self.build(self.model)
        self.scheduler = self.schedule(self.optimizer)

    def to(self, stop, at):
        for step in range(at, stop):
            if step == 4:
                fl.unfreeze(self.model, "0")
                fl.sync(self.model, self.optimizer, self.scheduler)
            if step == 8:
                fl.freeze(self.model, "3.bias")
                fl.sync(self.model, self.optimizer, self.scheduler)
            self.optimizer.step(functools.partial(self.closure, step))
            self.optimizer.zero_grad()
            self.scheduler.step(*[1.0] * isinstance(self.scheduler, lrs.ReduceLROnPlateau))

    def closure(self, step):
        self.optimizer.zero_grad()
        loss = self.model(batch(step)).square().mean()
        loss.backward()
        return loss

    def resumed(self):
        frozen = [name for name, p in self.model.named_parameters() if not p.requires_grad]
        weights, state, schedule = (
            saved(value)
            for value in (
                self.model.state_dict(),
                fl.optimizer_state(self.optimizer, self.model),
                self.scheduler.state_dict(),
            )
        )
        again = Run(self.build, self.schedule, frozen)
        again.model.load_state_dict(weights)
        fl.load_optimizer_state(again.optimizer, again.model, state)
        again.scheduler.load_state_dict(schedule)
        return again


def ours(build, **options):
    return lambda model: fl.optimizer(build, model, lr=0.05, **options)


def by_hand(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)


o = torch.optim
OPTIMIZERS = {
    "SGD": ours(o.SGD, momentum=0.9, layer_decay=0.5, dampening=0.1),
    "Adam": ours(o.Adam, no_decay=["bias"], amsgrad=True),
    "AdamW-fused": ours(o.AdamW, fused=True, layer_decay=0.5),
    "AdamW-tensor-lr": ours(functools.partial(o.AdamW, lr=torch.tensor(0.05)), no_decay="bias"),
    "AdamW-declared": ours(o.AdamW, declare_all=True),
    "RMSprop": ours(o.RMSprop, momentum=0.9),
    "Adagrad": ours(o.Adagrad),
    "NAdam": ours(o.NAdam),
    "Adafactor": ours(o.Adafactor),
    "LBFGS": ours(o.LBFGS, max_iter=2),
    "by-hand": by_hand,
}
SCHEDULERS = {
    "constant": lambda opt: lrs.ConstantLR(opt, 0.5, total_iters=6),
    "one-cycle": lambda opt: lrs.OneCycleLR(opt, 0.1, total_steps=13, cycle_momentum=False),
    "lambda-list": lambda opt: lrs.LambdaLR(
        opt, [lambda e, k=k: 0.9 ** (e * k) for k in range(len(opt.param_groups))]
    ),
    "plateau": lambda opt: lrs.ReduceLROnPlateau(opt, factor=0.5, patience=1),
    "sequence": lambda opt: lrs.SequentialLR(
        opt, [lrs.LinearLR(opt, 0.5, total_iters=3), lrs.ExponentialLR(opt, 0.9)], milestones=[3]
    ),
}


def assert_same(run, other):
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name
    one, two = (fl.optimizer_state(r.optimizer, r.model) for r in (run, other))
    assert same(one, two)


@pytest.mark.parametrize("stop", [0, 3, 4, 6, 9, 11])
@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_resumed_run_is_the_run_that_did_not_stop(build, stop):
    whole = Run(build, SCHEDULERS["one-cycle"])
    whole.to(12, at=0)
    run = Run(build, SCHEDULERS["one-cycle"])
    run.to(stop, at=0)
    again = run.resumed()
    again.to(12, at=stop)
    assert_same(whole, again)


@pytest.mark.parametrize("stop", [2, 6])
@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_resumed_schedule(schedule, stop):
    whole = Run(OPTIMIZERS["SGD"], schedule)
    whole.to(12, at=0)
    run = Run(OPTIMIZERS["SGD"], schedule)
    run.to(stop, at=0)
    again = run.resumed()
    again.to(12, at=stop)
    assert_same(whole, again)


def trained(build=o.AdamW, frozen=("0", "2"), **options):
    model = make_model()
    if frozen:
        fl.freeze(model, list(frozen))
    optimizer = fl.optimizer(build, model, lr=0.1, **options)
    for at in range(2):
        model(batch(at)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_what_is_loaded_is_a_copy():
    model, optimizer = trained()
    state = copy.deepcopy(fl.optimizer_state(optimizer, model))
    untouched = copy.deepcopy(state)
    fl.load_optimizer_state(optimizer, model, state)
    model(batch(3)).sum().backward()
    optimizer.step()
    assert same(state, untouched)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        pytest.param(
            {},
            {"frozen": ("0", "3")},
            r"2\.weight, 2\.bias trains now and did not\n.*3\.weight, 3\.bias trained and does not",
            id="another-layer",
        ),
        pytest.param({}, {"frozen": ("0",)}, r"2\.weight, 2\.bias is in the optimizer", id="more"),
        pytest.param({}, {"frozen": ("0", "2", "3.bias")}, r"3\.bias was in the opt", id="fewer"),
        pytest.param(
            {"declare_all": True},
            {"declare_all": True, "frozen": ("0",)},
            r"2\.weight, 2\.bias trains now",
            id="flags-alone",
        ),
        pytest.param({}, {"no_decay": ["bias"]}, "the groups are", id="groups"),
        pytest.param(
            {"options": {"3": {"lr": 1.0}, "2": {"lr": 2.0}}},
            {"options": {"2": {"lr": 1.0}, "3": {"lr": 2.0}}, "frozen": ("0", "2.weight")},
            "is in the optimizer",
            id="one-more-in-a-group",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(options, change, message):
    model, optimizer = trained(**options)
    state = saved(fl.optimizer_state(optimizer, model))
    model, optimizer = trained(**change)
    before = saved(fl.optimizer_state(optimizer, model))
    with pytest.raises(fl.OptimizerError, match=f"(?s)does not fit:.*{message}"):
        fl.load_optimizer_state(optimizer, model, state)
    assert same(fl.optimizer_state(optimizer, model), before)


def test_the_same_members_in_other_groups_are_named():
    model, optimizer = trained()
    state = saved(fl.optimizer_state(optimizer, model))
    parts = [[model[3].weight], [model[3].bias]]
    one, other = (
        torch.optim.AdamW([{"params": a}, {"params": b}]) for a, b in (parts, parts[::-1])
    )
    state = fl.optimizer_state(one, model)
    with pytest.raises(fl.OptimizerError, match=r"group 'group 0' differs by 3\.bias, 3\.weight"):
        fl.load_optimizer_state(other, model, state)


def test_another_shape_is_named():
    model, optimizer = trained()
    state = saved(fl.optimizer_state(optimizer, model))
    model[3] = nn.Linear(4, 7)
    fl.sync(model, optimizer)
    with pytest.raises(fl.OptimizerError, match=r"3\.weight has shape \[7, 4\], and had \[2, 4\]"):
        fl.load_optimizer_state(optimizer, model, state)
    report = fl.load_optimizer_state(optimizer, model, state, repair=True)
    assert (report.loaded, report.fresh) == ((), ("3.weight", "3.bias"))


def test_scheduler_keys_are_named_with_the_mend():
    model, optimizer = trained()
    lrs.StepLR(optimizer, 1)
    state = saved(fl.optimizer_state(optimizer, model))
    model, optimizer = trained()
    with pytest.raises(fl.OptimizerError, match=r"initial_lr is gone .*build it before loading"):
        fl.load_optimizer_state(optimizer, model, state)


def test_a_repair_maps_by_name_and_says_so():
    model, optimizer = trained(frozen=("0",), no_decay=["bias"])
    optimizer.param_groups[0]["lr"] = 0.7
    state = saved(fl.optimizer_state(optimizer, model))
    momentum = optimizer.state[model[3].weight]["exp_avg"]
    model, optimizer = trained(frozen=("2.weight", "2.bias"), layer_decay=None)
    report = fl.load_optimizer_state(optimizer, model, state, repair=True)
    assert report.loaded == ("3.weight", "3.bias")
    assert report.fresh == ("0.weight", "0.bias")
    assert report.ignored == ("2.weight", "2.bias")
    assert str(report) == (
        "loaded the state of 2 parameters; 2 start fresh (0.weight, 0.bias);"
        " 2 saved were left out (2.weight, 2.bias)"
    )
    assert any("the groups are ['all']" in text for text in report.differences)
    assert torch.equal(optimizer.state[model[3].weight]["exp_avg"], momentum)
    assert model[0].weight not in optimizer.state
    assert optimizer.param_groups[0]["lr"] == 0.7
    model(batch(0)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("build", [o.Adagrad, functools.partial(o.SGD, momentum=0.9, fused=True)])
def test_a_repair_leaves_an_optimizer_that_can_step(build):
    model, optimizer = trained(build, frozen=("0",))
    state = saved(fl.optimizer_state(optimizer, model))
    model, optimizer = trained(build, frozen=("2",))
    fl.load_optimizer_state(optimizer, model, state, repair=True)
    model(batch(0)).sum().backward()
    optimizer.step()


def test_names_stand_beside_their_parameters_after_a_load():
    """What joined late stands last in its group; built anew, it stands first."""
    model = make_model()
    frozen = fl.freeze(model, "0")
    trains = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trains, lr=0.1)
    frozen.undo()
    fl.sync(model, optimizer)
    again = torch.optim.SGD(model.named_parameters(), lr=0.1)
    fl.load_optimizer_state(again, model, fl.optimizer_state(optimizer, model))
    (group,) = again.param_groups
    assert group["param_names"][-1] == "0.bias"
    named = dict(model.named_parameters())
    assert [id(named[name]) for name in group["param_names"]] == list(map(id, group["params"]))


def test_wrappers_do_not_matter():
    model, optimizer = trained()
    state = fl.optimizer_state(optimizer, nn.DataParallel(model))
    assert fl.load_optimizer_state(optimizer, model, state).fresh == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda m, opt: opt.state_dict(), "which is by position", id="torch"),
        pytest.param(lambda m, opt: {"weights": 1}, "its format is None", id="something"),
        pytest.param(
            lambda m, opt: fl.optimizer_state(trained(o.SGD)[1], m), "not parameters of", id="model"
        ),
        pytest.param(
            lambda m, opt: (lambda t: fl.optimizer_state(t[1], t[0]))(trained(o.SGD)),
            "is of SGD, this is AdamW",
            id="class",
        ),
    ],
)
def test_refusals_that_no_repair_mends(make, message):
    model, optimizer = trained()
    with pytest.raises(fl.OptimizerError, match=message):
        fl.load_optimizer_state(optimizer, model, make(model, optimizer), repair=True)


def test_orphaned_state_is_named():
    model, optimizer = trained()
    del optimizer.param_groups[0]["params"][0]
    with pytest.raises(fl.OptimizerError, match=r"fl\.sync"):
        fl.optimizer_state(optimizer, model)
