from __future__ import annotations

import copy

import pytest
import torch
from scheduling import Run, batch, busy
from torch import nn
from zoo import Net, TiedLm

import frostline as fl
from frostline.freezer import Event, Freezer
from frostline.schedules import LISA, Alpha, Explicit

HEAD_THEN_ALL = [{"step": 0, "train": ["head"]}, {"step": 2, "train": ["**"]}]


def setting(schedule=None, *, model=None, optimizer=torch.optim.SGD, **options):
    model = model or Net(2)
    built = fl.optimizer(optimizer, model, lr=0.1)
    return model, built, Freezer(model, built, schedule=schedule or HEAD_THEN_ALL, **options)


def backward(model, seed=0):
    inputs, targets = batch(seed)
    nn.functional.cross_entropy(model(inputs), targets).backward()


def step(model, optimizer, freezer):
    optimizer.zero_grad()
    backward(model)
    optimizer.step()
    freezer.step()


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_first_decision_is_carried_out_at_once() -> None:
    model, optimizer, freezer = setting()
    assert trainable(model) == {"head.weight", "head.bias"}
    assert len(optimizer.param_groups[0]["params"]) == 2
    assert freezer.model is model
    assert freezer.trains == ("head.weight", "head.bias")


def test_events_say_what_and_why() -> None:
    model, optimizer, freezer = setting("gradual-unfreeze", steps_per_epoch=2, total_steps=8)
    for _ in range(2):
        step(model, optimizer, freezer)
    assert freezer.events == (
        Event(
            step=0,
            epoch=0,
            kind="start",
            why="epoch 0: 1 group from the top of 4",
            frozen=("stem", "layers.0", "layers.1"),
            frozen_blocks=2,
            numbers={"groups": 1},
        ),
        Event(
            step=2,
            epoch=1,
            kind="thaw",
            why="epoch 1: 2 groups from the top of 4",
            thawed=("layers.1",),
            frozen_blocks=1,
            numbers={"groups": 2},
        ),
    )
    assert [(row.step, row.frozen, row.blocks) for row in freezer.timeline()] == [
        (0, ("stem", "layers.0", "layers.1"), 2),
        (2, ("stem", "layers.0"), 1),
    ]
    assert [Event.from_plain(event.to_plain()) for event in freezer.events] == list(freezer.events)


def test_a_step_is_counted_when_the_optimizer_has_stepped() -> None:
    model, optimizer, freezer = setting()
    for _ in range(3):  # micro-batches
        backward(model)
        freezer.step()
    assert freezer.position.step == 0
    optimizer.step()
    freezer.step()
    freezer.step()
    assert freezer.position.step == 1


def test_an_optimizer_that_never_steps_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frostline.freezer.watch._PATIENCE_CALLS", 3)
    _, _, freezer = setting()
    freezer.step()
    freezer.step()
    with pytest.raises(fl.TransitionError, match="did not step once"):
        freezer.step()


def test_a_transition_is_refused_while_gradients_wait_and_made_later() -> None:
    model, optimizer, freezer = setting()
    step(model, optimizer, freezer)
    model.zero_grad()
    backward(model)
    optimizer.step()
    backward(model, seed=1)  # the next step has begun
    with pytest.raises(fl.TransitionError, match=r"head\.weight has a gradient from a forward"):
        freezer.step()
    assert trainable(model) == {"head.weight", "head.bias"}
    assert (freezer.position.step, len(freezer.events)) == (1, 1)
    model.zero_grad()
    freezer.step()
    assert freezer.position.step == 2
    assert len(trainable(model)) == len(list(model.parameters()))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_used_gradients_are_no_hindrance(set_to_none: bool) -> None:
    model, optimizer, freezer = setting()
    for _ in range(2):
        optimizer.zero_grad(set_to_none=set_to_none)
        backward(model)
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        model.eval()
        model(batch(0)[0])  # an evaluation with grad enabled
        model.train()
        freezer.step()
    assert freezer.position.step == 2
    assert not freezer.frozen


def test_what_thaws_follows_the_mode_of_the_model() -> None:
    """Frozen at an epoch's end in eval mode, thawed in the middle of the next."""
    phases = [
        {"step": 0, "train": ["**"]},
        {"epoch": 1, "train": ["head"]},
        {"step": 3, "train": ["**"]},
    ]
    model, optimizer, freezer = setting(phases)
    step(model, optimizer, freezer)
    step(model, optimizer, freezer)
    model.eval()
    freezer.epoch()
    model.train()
    step(model, optimizer, freezer)
    assert not freezer.frozen
    assert model.layers[0].norm.training
    assert model.layers[0].drop.training


def test_a_module_that_its_owner_keeps_in_eval_stays_so() -> None:
    model = Net(2)
    model.layers[1].eval()
    model, optimizer, freezer = setting(model=model)
    step(model, optimizer, freezer)
    step(model, optimizer, freezer)
    assert model.layers[0].norm.training
    assert not model.layers[1].norm.training


def test_what_moved_while_it_was_frozen_is_found_before_it_thaws() -> None:
    model, optimizer, freezer = setting()
    step(model, optimizer, freezer)
    model.stem.weight.data[0, 0] += 1
    with pytest.raises(fl.FrozenChangedError, match=r"stem\.weight"):
        freezer.verify()
    with pytest.raises(fl.FrozenChangedError, match=r"stem\.weight"):
        step(model, optimizer, freezer)
    assert "stem.weight" in freezer.frozen
    assert freezer.position.step == 1


def test_without_proof_a_thaw_compares_nothing() -> None:
    model, optimizer, freezer = setting(prove=False)
    step(model, optimizer, freezer)
    model.stem.weight.data[0, 0] += 1
    step(model, optimizer, freezer)
    assert not freezer.frozen


def test_verify_counts_everything_that_is_frozen() -> None:
    _, _, freezer = setting()
    proof = freezer.verify()
    assert (proof.parameters, proof.buffers) == (10, 6)


def test_a_thousand_transitions_leave_no_more_than_two() -> None:
    model, optimizer, freezer = setting(LISA(layers=1, period=1), model=Net(3))
    for _ in range(40):
        step(model, optimizer, freezer)
    assert len(freezer._holder._owners.values()) <= 5
    from frostline.freezing.flags import claims_on

    assert max(len(claims_on(p)) for p in model.parameters()) <= 3


def test_what_was_frozen_by_hand_belongs_to_the_schedule_and_comes_back() -> None:
    model = Net(2)
    model.stem.requires_grad_(False)
    frozen = fl.freeze(model, "layers.0")
    model, optimizer, freezer = setting(model=model)
    step(model, optimizer, freezer)
    step(model, optimizer, freezer)
    assert len(trainable(model)) == len(list(model.parameters()))
    freezer.close()
    assert not {n for n in trainable(model) if n.startswith(("stem", "layers.0"))}
    assert "head.weight" in trainable(model)
    assert frozen.names


def test_what_is_fixed_is_left_alone() -> None:
    model = Net(2)
    model.stem.requires_grad_(False)
    model, optimizer, freezer = setting(model=model, fixed="stem")
    step(model, optimizer, freezer)
    step(model, optimizer, freezer)
    assert not model.stem.weight.requires_grad
    assert not {unit.name for unit in freezer.layout.units} & {"stem.weight", "stem.bias"}


def test_blocks_can_be_named() -> None:
    _, _, freezer = setting("alpha", blocks=["stem", "layers.1"])
    assert freezer.layout.blocks == ("stem", "layers.1")


def test_without_a_head_the_last_block_is_left() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    freezer = Freezer(model, optimizer, schedule=Alpha(alpha=1.0), blocks=["0", "1", "2"])
    freezer.epoch()
    assert freezer.trains == ("2",)


def test_a_head_tied_to_the_embedding_trains_with_the_head() -> None:
    model = TiedLm()
    optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    freezer = Freezer(model, optimizer, schedule="lpft")
    assert freezer.trains == ("head",)
    assert trainable(model) == {"transformer.wte.weight"}


def test_epochs_end_by_themselves_if_their_length_is_given() -> None:
    model, optimizer, freezer = setting("alpha", steps_per_epoch=2)
    counts = []
    for _ in range(4):
        step(model, optimizer, freezer)
        counts.append(freezer.position.epoch)
    assert counts == [0, 1, 1, 2]
    freezer.epoch(0.5)  # brings the metric; the epoch has ended already
    assert freezer.position.epoch == 2
    step(model, optimizer, freezer)
    with pytest.raises(fl.FrostlineError, match=r"came 1 steps after .* steps_per_epoch=2"):
        freezer.epoch()
    assert freezer.position.epoch == 2


def test_an_epoch_waits_for_its_metric_where_the_schedule_does() -> None:
    phases = [{"epoch": 0, "train": ["head"]}, {"stall": 1, "train": ["**"]}]
    model, optimizer, freezer = setting(phases, steps_per_epoch=1)
    for metric in (0.5, 0.4):
        step(model, optimizer, freezer)
        freezer.epoch(metric)
    assert freezer.position.epoch == 2
    assert not freezer.frozen
    model, optimizer, freezer = setting(phases, steps_per_epoch=1)
    step(model, optimizer, freezer)
    with pytest.raises(fl.FrostlineError, match="none came"):
        step(model, optimizer, freezer)


def test_the_length_of_an_epoch_is_seen_when_the_first_has_ended() -> None:
    model, optimizer, freezer = setting("freezeout")
    assert freezer.events[0].kind == "note"
    assert "10 epochs" in freezer.events[0].why
    assert (freezer.position.steps_per_epoch, freezer.position.total_steps) == (100, 1000)
    for _ in range(3):
        step(model, optimizer, freezer)
    freezer.epoch()
    assert (freezer.position.steps_per_epoch, freezer.position.total_steps) == (3, 30)
    step(model, optimizer, freezer)
    freezer.epoch()  # a short one changes nothing
    assert freezer.position.steps_per_epoch == 3
    assert setting("freezeout", total_steps=9, steps_per_epoch=3)[2].events[0].kind == "start"


def test_the_loss_can_be_read_as_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    decide = Explicit.decide

    def reads_loss(self, progress, signals, state):
        if progress.at == "step":
            read.append(signals["loss"])
        return decide(self, progress, signals, state)

    monkeypatch.setattr(Explicit, "decide", reads_loss)
    model, optimizer, freezer = setting()
    backward(model)
    optimizer.step()
    freezer.step(torch.tensor(0.5))
    assert read == [{"loss": 0.5}]


def test_it_works_on_a_wrapped_model() -> None:
    inner = Net(2)
    wrapped = nn.DataParallel(inner)
    _, optimizer, freezer = setting(model=wrapped)
    assert freezer.trains == ("head.weight", "head.bias")
    assert freezer.model is wrapped
    step(wrapped, optimizer, freezer)
    step(wrapped, optimizer, freezer)
    assert not freezer.frozen


def test_a_model_replayed_from_a_copy_is_not_touched() -> None:
    model, _, _ = setting()
    twin = copy.deepcopy(model)
    assert trainable(twin) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(("schedule", "kept"), [("lisa", False), ("apf", True)])
def test_optimizer_state_of_what_froze(schedule: str, kept: bool) -> None:
    run = Run(busy(schedule))
    while len(run.freezer.frozen) < 2 or run.done < 4:
        run.step()
    frozen = set(run.freezer.frozen)
    units = [unit for unit in run.freezer.layout.units if unit.name in frozen]
    named = dict(run.model.named_parameters())
    states = [named[name] in run.optimizer.state for unit in units for name in unit.parameters]
    assert any(states) is kept
    assert all(named[name] in run.optimizer.state for name in ("head.weight", "head.bias"))


@pytest.mark.parametrize(
    "schedule", ["alpha", "apf", "autofreeze", "explicit", "freezeout", "lisa"]
)
def test_the_guard_and_the_linter_have_nothing_to_say(schedule: str) -> None:
    run = Run(busy(schedule), scheduler=True)
    with fl.guard(run.model, run.optimizer, every=1) as guard:
        run.until(12)
    assert guard.report.violations == ()
    found = fl.check(run.model, run.optimizer, run.scheduler)
    assert [f for f in found if f.severity == "error"] == []


def test_a_step_that_a_gradient_scaler_leaves_out_is_none() -> None:
    model, optimizer, freezer = setting()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for infinite in (True, False, True):
        optimizer.zero_grad()
        inputs, targets = batch(0)
        loss = nn.functional.cross_entropy(model(inputs), targets)
        scaler.scale(loss * float("inf") if infinite else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        freezer.step()
    assert freezer.position.step == 1


def test_parameters_that_were_replaced_are_found_again() -> None:
    model, optimizer, freezer = setting([{"epoch": 0, "train": ["**"], "rates": {"stem": 1e-9}}])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    fl.sync(model, optimizer)
    step(model, optimizer, freezer)
    before = model.stem.weight.detach().clone(), model.head.weight.detach().clone()
    step(model, optimizer, freezer)
    assert torch.allclose(model.stem.weight, before[0], atol=1e-7, rtol=0)
    assert not torch.allclose(model.head.weight, before[1], atol=1e-7, rtol=0)


def test_a_signal_that_never_comes_is_noted_once() -> None:
    class Deaf(Net):
        def forward(self, x):
            for layer in self.layers:
                x = layer.forward(x)  # past all hooks, as compiled code goes
            return self.head(x)

    model, optimizer, freezer = setting(busy("plasticity"), model=Deaf(3))
    for _ in range(8):
        step(model, optimizer, freezer)
    assert [event.kind for event in freezer.events] == ["start", "note"]
    assert "the signal similarity was asked for and there was none" in freezer.events[1].why
