"""What a guard covers, what it does about a violation, and that it leaves no trace."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from guarding import bits, frozen_net, hooks, net, train, violated
from torch import nn
from torch.optim import SGD

import frostline as fl

# --- no trace ---------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["raise", "warn", "restore"])
@pytest.mark.parametrize("every", [1, 2, None])
def test_training_is_bitwise_the_same_with_a_guard(every: int | None, on: str) -> None:
    results = []
    for guarded in (False, True):
        model, optimizer = frozen_net()
        if guarded:
            with fl.guard(model, optimizer, every=every, on=on) as guard:  # type: ignore[arg-type]
                train(model, optimizer, steps=5)
            assert guard.report.violations == ()
            assert guard.report.steps == 5
        else:
            train(model, optimizer, steps=5)
        results.append((bits(model), fl.fingerprint(torch.random.get_rng_state())))
    assert results[0] == results[1]


def test_an_encoder_frozen_by_hand_takes_the_same_path_through_torch() -> None:
    """With a hook on any module TransformerEncoderLayer leaves its fast path, and rounds apart."""
    results = []
    for guarded in (False, True):
        torch.manual_seed(0)
        encoder = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True).eval()
        model = nn.Sequential(encoder.requires_grad_(False), nn.Linear(64, 3))
        optimizer = SGD(model[1].parameters(), lr=0.1)
        x = torch.randn(4, 9, 64)
        guard = fl.guard(model, optimizer, every=1)
        if guarded:
            guard.start()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())
        assert len(model._forward_hooks) == guarded
        model(x).square().sum().backward()
        optimizer.step()
        guard.stop()
        results.append(bits(model))
    assert results[0] == results[1]


@pytest.mark.parametrize("fails", [False, True])
def test_all_hooks_are_removed(fails: bool) -> None:
    model, optimizer = frozen_net()
    before = hooks(model)
    try:
        with fl.guard(model, optimizer, every=1):
            assert hooks(model) != before
            train(model, optimizer)
            if fails:
                raise KeyError("the user's own")
    except KeyError:
        assert fails
    assert hooks(model) == before


def test_an_error_of_the_loop_is_not_masked() -> None:
    model, optimizer = frozen_net()
    guard = fl.guard(model, optimizer)

    def loop() -> None:
        with guard:
            train(model, optimizer, steps=3)
            model[0].weight.data.add_(1)
            raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        loop()
    assert guard.report.steps == 3
    assert guard.report.violations == ()


def test_a_copy_and_a_pickle_made_inside_are_not_guarded() -> None:
    model, optimizer = frozen_net()
    with fl.guard(model, optimizer, every=1) as guard:
        twin = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        assert b"frostline.guard.session" not in file.getvalue()
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        checks = guard.report.checks
        for other in (twin, loaded):
            other.load_state_dict(net().state_dict())
            other[0].weight.data.add_(1)
            other(torch.randn(6, 8))
        assert guard.report.checks == checks
        train(model, optimizer)


def test_other_models_and_optimizers_are_none_of_its_business() -> None:
    model, optimizer = frozen_net()
    other = net()
    with fl.guard(model, optimizer, every=1) as guard:
        train(other, SGD(other.parameters(), lr=0.1), steps=3)
        train(model, optimizer)
    assert guard.report.steps == 1


# --- content ----------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [pytest.param(1000, id="rarely"), pytest.param(None, id="paced")])
def test_everything_is_compared_at_the_end(every: int | None) -> None:
    model, optimizer = frozen_net()
    with violated(model, optimizer, every=every) as caught:
        train(model, optimizer, steps=3)
        model[1].running_mean[2] = 7.0
    error = caught.value
    assert isinstance(error, fl.FrozenChangedError)
    assert [c.name for c in error.changes] == ["1.running_mean"]
    assert error.changes[0].moved == 1
    assert error.step == 3


def test_every_so_many_steps() -> None:
    model, optimizer = frozen_net()

    def meddle(number: int) -> None:
        if number == 4:
            model[0].weight.data[0, 0] += 1

    with violated(model, optimizer, every=3) as caught:
        train(model, optimizer, steps=9, before=meddle)
    (violation,) = caught.value.violations
    assert (violation.since, violation.step) == (3, 6)
    assert "1 of 32 elements moved, by at most 1 after step 3, by step 6" in str(caught.value)


def test_the_default_reads_all_content_again_and_again() -> None:
    model, optimizer = frozen_net()
    with fl.guard(model, optimizer) as guard:
        train(model, optimizer, steps=2)
        guard._pace.share = 10.0  # as in a loop that takes its time
        first = guard.report.checks
        train(model, optimizer, steps=4)
        assert guard.report.checks - first >= 4 * 7
    assert guard.report.bytes_read > 0


def test_a_change_found_in_turn_has_all_the_others_looked_at() -> None:
    model, optimizer = frozen_net()
    guard = fl.guard(model, optimizer, every=2)
    guard.start()
    train(model, optimizer, steps=2)
    for parameter in (*model[0].parameters(), *model[1].parameters()):
        parameter.data.add_(1)
    guard._timeline.cut("now")
    found = guard._keeper.look([guard._keeper.watched["0.bias"]], step=3)
    guard.stop()
    assert sorted(v.name for v in found) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_strides_and_devices_are_no_content() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    fl.freeze(model, "0")
    optimizer = fl.optimizer(SGD, model, lr=0.1)
    with fl.guard(model, optimizer, every=1) as guard:
        model.to(memory_format=torch.channels_last)
        model(torch.randn(1, 3, 8, 8)).sum().backward()
        optimizer.step()
    assert guard.report.violations == ()
