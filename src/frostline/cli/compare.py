"""``frostline compare``: four ways to freeze, and replay, side by side."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frostline.cli.console import notes, print_json, readable_warnings, results, say
from frostline.errors import ConfigError

if TYPE_CHECKING:
    from frostline.compare.claims import Claim
    from frostline.compare.comparison import Comparison


def compare(
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="tutorial (8-4-10, random data) or digits-cnn; with --data whatever"
            " 'frostline finetune' takes.",
        ),
    ] = "tutorial",
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="What 'frostline finetune' takes.")
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SELECTOR",
            help="What to freeze; repeatable. fc1 of tutorial, the first three stages of"
            " digits-cnn, all but the head of others if left out.",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(metavar="N", min=1, help="Training steps before comparing.")
    ] = 10,
    optimizer: Annotated[
        str, typer.Option(metavar="NAME", help="Of torch.optim, such as AdamW.")
    ] = "SGD",
    lr: Annotated[float, typer.Option(metavar="RATE", help="Learning rate.")] = 1e-2,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Of weights, data and dropout.")
    ] = 0,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps to time; fewer if they are slow.")
    ] = 100,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the tables.")
    ] = False,
) -> None:
    """Freeze a part of a network in five ways, and see what moves and what it costs.

    none: nothing is frozen. grad: requires_grad=False. optimizer: the optimizer is not given what
    is frozen. best: both, by fl.freeze and fl.optimizer. replay: best, and what is frozen is
    computed once a sample. Then: what tutorials say about them, and what was measured here.

    Example: frostline compare --model digits-cnn --optimizer AdamW

    Example: frostline compare --model bert-base/ --data reviews.csv --optimizer AdamW

    Next: frostline finetune
    """
    # Late: torch takes a second to load, and --help should not.
    import torch

    from frostline.compare.claims import weigh
    from frostline.compare.subjects import find_subject
    from frostline.compare.ways import Experiment, compare_ways
    from frostline.finetune.loop import batch_loss, batch_size
    from frostline.finetune.prepare import find_optimizer

    optimizer_class = find_optimizer(optimizer)
    # What a user's code prints must not get among the results.
    with contextlib.redirect_stdout(sys.stderr), readable_warnings():
        subject = find_subject(model, data, count=steps, note=say)
    if not (freeze or subject.freeze):
        raise ConfigError(f"what should be frozen of {model}? Give --freeze NAME")
    torch.manual_seed(seed)
    experiment = Experiment(
        model=subject.network(),
        batches=subject.batches(seed),
        loss=batch_loss,
        freeze=freeze or subject.freeze,
        optimizer=optimizer_class,
        options={"lr": lr},
        steps=steps,
        repeats=repeats,
        seed=seed,
        threads=subject.threads,
    )
    with notes().status("running the five ways"), readable_warnings():
        found = compare_ways(experiment)
    claims = weigh(found)
    settings = {
        "model": model,
        "data": data,
        "optimizer": optimizer,
        "lr": lr,
        "steps": steps,
        "batch_size": batch_size(experiment.batches[0]),
        "seed": seed,
        "device": "cpu",
        "threads": subject.threads or torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if as_json:
        print_json(_as_json(settings, found, claims))
        return
    from frostline.cli.compare_view import show

    show(settings, found, claims, results())
    results().print(f"\nNext: {_next_step(model, data, freeze)}", soft_wrap=True)


def _as_json(
    settings: dict[str, Any], found: Comparison, claims: tuple[Claim, ...]
) -> dict[str, Any]:
    return {
        **settings,
        "frozen": found.frozen,
        "frozen_buffers": found.frozen_buffers,
        "cases": [
            {
                "way": result.way,
                "changed": result.changed,
                "requires_grad": result.requires_grad,
                "gradient_bytes": result.gradient_bytes,
                "leftover_gradient_bytes": result.leftover_gradient_bytes,
                "optimizer_state_bytes": result.optimizer_state_bytes,
                "activation_bytes": result.activation_bytes,
                "step_seconds": result.step_time.median_seconds,
                "step_time": asdict(result.step_time),
                "predicted": asdict(result.predicted),
                "replay": asdict(result.replayed) if result.replayed else None,
            }
            for result in found.ways
        ],
        "late_freeze_optimizer_state_bytes": found.late_state_bytes,
        "claims": [asdict(claim) for claim in claims],
    }


def _next_step(model: str, data: str | None, freeze: list[str] | None) -> str:
    """The comparison that adds most to this one, or the main job."""
    if model == "tutorial" and data is None:
        return "frostline compare --model digits-cnn --optimizer AdamW"
    given = ["--model", model, "--data", data] if data is not None else []
    return shlex.join(
        ["frostline", "finetune", *given, *(part for s in freeze or [] for part in ("--freeze", s))]
    )
