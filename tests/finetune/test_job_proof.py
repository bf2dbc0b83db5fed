"""The proof of a run sees one unit in the last place, before a resumption and after."""

from __future__ import annotations

import signal

import pytest
import torch
from jobs import FINISHED, Calls, files, interrupt, quick, read
from torch import nn

from frostline.errors import ConfigError
from frostline.finetune import job
from frostline.finetune.watcher import Silent

pytestmark = pytest.mark.usefixtures("swift")


def one_ulp(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        flat = tensor.view(-1)
        if flat.is_floating_point():
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf))
        else:
            flat[-1] += 1


@pytest.fixture
def models(monkeypatch) -> list[nn.Module]:
    """The models of all runs of this test, as they are made."""
    made: list[nn.Module] = []
    prepare = job.prepare

    def noting(*args, **kwargs):
        setup = prepare(*args, **kwargs)
        made.append(setup.model)
        return setup

    monkeypatch.setattr(job, "prepare", noting)
    return made


FROZEN_TENSORS = [
    pytest.param("stem.0.weight", "parameter", id="weight"),
    pytest.param("block2.1.bias", "parameter", id="bias"),
    pytest.param("block1.1.running_mean", "buffer", id="running-mean"),
    pytest.param("block2.1.running_var", "buffer", id="running-var"),
    pytest.param("stem.1.num_batches_tracked", "buffer", id="counter"),
]


@pytest.mark.parametrize(("name", "kind"), FROZEN_TENSORS)
def test_one_unit_in_the_last_place_breaks_the_proof(tmp_path, models, name, kind):
    result = job.start(
        quick(tmp_path), Calls(lambda: one_ulp(models[0].state_dict(keep_vars=True)[name]), 13)
    )
    assert not result.proof.ok
    (change,) = result.proof.changes
    assert (change.name, change.kind, change.moved) == (name, kind, 1)
    assert files(result.run) == FINISHED
    written = read(result.run, "result.json")["proof"]
    assert written["ok"] is False
    assert [moved["name"] for moved in written["changes"]] == [name]
    status = read(result.run, "status.json")
    assert (status["state"], status["resumable"]) == ("failed", False)
    assert status["message"].startswith(f"the proof failed: {kind} {name}: 1 of ")
    assert status["next"] == f"frostline finetune {result.run}/config.yaml"
    with pytest.raises(ConfigError, match="can't be resumed, it is failed: the proof failed"):
        job.resume(result.run)


@pytest.mark.parametrize(("name", "kind"), FROZEN_TENSORS)
def test_the_proof_covers_what_happened_before_a_resumption(tmp_path, models, name, kind):
    class MovesThenStops(Silent):
        """Moves a tensor in epoch 1, whose checkpoint then has it, and stops in epoch 2."""

        def __init__(self) -> None:
            self.steps = 0

        def step(self, loss: float) -> None:
            self.steps += 1
            if self.steps == 3:
                one_ulp(models[0].state_dict(keep_vars=True)[name])
            if self.steps == 12:
                signal.raise_signal(signal.SIGINT)

    run = interrupt(quick(tmp_path), MovesThenStops())
    result = job.resume(run)
    (change,) = result.proof.changes
    assert (change.name, change.kind, change.moved) == (name, kind, None)
    assert change.elements == models[0].state_dict()[name].numel()
    assert "before the run was resumed" in change.cause
    (written,) = read(run, "result.json")["proof"]["changes"]
    assert written["max_abs"] is None


def test_a_plan_that_was_altered_in_between_breaks_the_proof(tmp_path):
    run = interrupt(
        quick(tmp_path, train=["block3", "head"], optimizer="SGD"),
        Calls(lambda: signal.raise_signal(signal.SIGINT), 12),
    )
    # As many tensors are trained as before, but others.
    plan = "frostline: 1\nrules: [{freeze: '**'}, {train: [block2, head]}]"
    (run / "plan.yaml").write_text(plan)
    result = job.resume(run)
    assert {change.name.partition(".")[0] for change in result.proof.changes} == {"block2"}
    assert len(result.proof.changes) == 6
