"""``frostline finetune``: train a part of a model, prove that the rest did not change."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from frostline.cli.console import notes, print_json, results

_DOES_NOT_HOLD = 1
_INTERRUPTED = 130


def finetune(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG",
            help="YAML file with any of the options, such as 'epochs: 5'. Options given here win.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="digits-cnn (pretrained), package.module:factory or path/model.py:factory.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="digits: 8 x 8 scans of the digits 5-9.")
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(metavar="SELECTOR", help="Train this, freeze the rest; repeatable."),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(metavar="SELECTOR", help="Freeze this, train the rest; repeatable."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A plan, in place of --train or --freeze."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="When to freeze what ('frostline schedule list'). What --train, --freeze or --plan"
            " freezes stays frozen.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Passes over the scans; 10 if left out.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(metavar="RATE", help="Learning rate; 0.001 if left out.")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of torch.optim; AdamW if left out.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Scans a step; 32 if left out.")
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Weight decay; the optimizer's own if left out."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Of split, head, order, dropout; 0.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The run gets a new folder in it; runs.")
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="Compute what is frozen once a scan: auto (if it is faster here), on, off,"
            " memory, or a folder; auto if left out. The results are the same.",
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was cut short.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the tables.")
    ] = False,
) -> None:
    """Fine-tune a model with a part of it frozen, and prove that this part did not change.

    Without arguments: a small network that knows the digits 0-4 learns 5-9 from real scans, all
    frozen but its last block and a new head. Weights, plan, metrics and proof go to a new folder.

    Example: frostline finetune --train head --epochs 20 --lr 3e-3

    Example: frostline finetune --model mynet.py:build --freeze encoder --json

    Next: frostline inspect runs/NAME/model.safetensors
    """
    given = {
        "model": model,
        "data": data,
        "train": train,
        "freeze": freeze,
        "plan": plan,
        "schedule": schedule,
        "epochs": epochs,
        "lr": lr,
        "optimizer": optimizer,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "seed": seed,
        "out": out,
        "replay": replay,
    }
    flags = {name: value for name, value in given.items() if value is not None and value != []}
    if resume and (config or flags):
        raise typer.BadParameter(
            "a run goes on as it began, so it takes no other option but --json",
            param_hint="--resume",
        )

    # Late: torch takes a second to load, and --help should not.
    from frostline.finetune.interrupts import Interrupted, loading

    with loading():
        from frostline.cli.finetune_view import Display, show
        from frostline.finetune import job
        from frostline.finetune.config import load_config

        display = Display(notes())
        # What a user's model prints must not get among the results.
        with contextlib.redirect_stdout(sys.stderr), display:
            try:
                if resume:
                    result = job.resume(resume, display)
                else:
                    result = job.start(load_config(config, flags), display)
            except Interrupted as stopped:
                display.note(str(stopped))
                raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        print_json(result.to_json())
    else:
        show(result, results())
    if not result.proof.ok:
        display.note(f"error: {result.proof.summary}")
        raise typer.Exit(_DOES_NOT_HOLD)
