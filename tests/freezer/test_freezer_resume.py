"""A freezer that is saved and loaded goes on where it was."""

from __future__ import annotations

from scheduling import PHASES, Run, busy

from frostline.schedules import Explicit, GradualUnfreeze


def test_resuming_goes_on_in_the_middle_of_a_phase() -> None:
    straight = Run(GradualUnfreeze(), scheduler=True).until(20)
    half = Run(GradualUnfreeze(), scheduler=True).until(9)
    again = Run(GradualUnfreeze(), scheduler=True).load(half.save())
    assert again.freezer.position == half.freezer.position
    assert again.freezer.rates == half.freezer.rates
    assert again.freezer.events == half.freezer.events
    assert again.until(20).bits() == straight.bits()


def test_state_that_is_kept_on_purpose_is_known_as_such_after_a_resume() -> None:
    run = Run(busy("apf"))
    while len(run.freezer.frozen) < 2:
        run.step()
    again = Run(busy("apf")).load(run.save())
    kept = run.optimizer.param_groups[0]["kept_names"]
    assert kept
    assert again.optimizer.param_groups[0]["kept_names"] == kept


def test_a_run_may_be_made_longer_when_it_is_resumed() -> None:
    saved = Run("lisa").until(5).save()
    longer = Run("lisa", total_steps=99).load(saved)
    assert (longer.freezer.position.step, longer.freezer.position.total_steps) == (5, 99)


def test_explicit_phases_survive_a_resume() -> None:
    run = Run(Explicit(PHASES)).until(8)
    assert Run(busy("explicit")).load(run.save()).freezer.trains == run.freezer.trains
