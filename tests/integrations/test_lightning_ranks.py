"""Lightning under DDP, two processes on the CPU; run as a script it is one of the two."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("plan", "ddp"),
        ("schedule", "ddp_find_unused_parameters_true"),
    ],
    ids=["plan", "schedule"],
)
def test_two_processes(kind: str, strategy: str) -> None:
    run = subprocess.run(
        [sys.executable, __file__, kind, strategy],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert "equal on all ranks: True; replayed: True" in run.stdout, run.stderr


def main(kind: str, strategy: str) -> None:
    sys.path.insert(0, str(TESTS))
    warnings.simplefilter("ignore")
    import torch
    from framework_jobs import HEAD, Network, Samples
    from framework_lightning import Learner, make_trainer
    from torch import distributed
    from torch.utils.data import DataLoader

    from frostline.integrations.lightning import FrostlineCallback

    torch.manual_seed(0)
    learner = Learner(Network())
    phases = [{"epoch": 0, "train": ["head"]}, {"epoch": 1, "train": ["head", "blocks.2"]}]
    what = {"plan": HEAD} if kind == "plan" else {"schedule": phases}
    callback = FrostlineCallback(**what, replay=True)
    equal: list[bool] = []

    def compare() -> None:
        mine = torch.cat([p.detach().flatten() for p in learner.net.parameters()])
        all_of = [torch.zeros_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(all_of, mine)
        equal.append(all(torch.equal(mine, other) for other in all_of))

    learner.on_train_end = compare  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), [callback], max_epochs=6, devices=2, strategy=strategy)
        trainer.fit(learner, DataLoader(Samples(), 4, shuffle=True))
    assert callback.replayer is not None
    replayed = callback.replayer.stats.replayed > 0
    if trainer.is_global_zero:
        sys.stdout.write(f"equal on all ranks: {equal[0]}; replayed: {replayed}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
