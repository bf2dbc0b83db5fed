"""``frostline finetune``: train a part of a model, prove that the rest did not change."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.console import notes, print_json, readable_warnings, results

if TYPE_CHECKING:
    from frostline.cli.finetune_view import Display
    from frostline.finetune.config import FinetuneConfig
    from frostline.finetune.dry_run import Preview

_DOES_NOT_HOLD = 1
_FAILED = 2
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
            help="A Hugging Face name or folder, a timm name, package.module:factory,"
            " path/model.py:factory, or digits-cnn (pretrained).",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="A folder of images; a CSV, JSONL, Parquet or text file, or a folder of them; a"
            " Hugging Face data set; path/data.py:factory; or digits.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="image-classification, text-classification, token-classification or causal-lm,"
            " where model and data leave it open.",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=NAME", help="Column of a table, as text=review; repeatable."),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a text; the model's own maximum.")
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Held out where the data has no such part; 0.25."),
    ] = None,
    broken: Annotated[
        str | None,
        typer.Option(metavar="refuse|skip", help="What to do about files that can't be read."),
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
        int | None, typer.Option(metavar="N", help="Passes over the samples; 10 if left out.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(metavar="RATE", help="Learning rate; 0.001 if left out.")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of torch.optim; AdamW if left out.")
    ] = None,
    lr_schedule: Annotated[
        str | None,
        typer.Option(metavar="SHAPE", help="constant, or down to 0: linear or cosine; constant."),
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Steps in which the rate rises; 0.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Samples at once, in each process; 32.")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(metavar="N", help="Batches that make one step; 1.")
    ] = None,
    mixed_precision: Annotated[
        str | None, typer.Option(metavar="no|bf16|fp16", help="Of the forward pass; no.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes that load batches; 0.")
    ] = None,
    early_stop: Annotated[
        int | None,
        typer.Option(metavar="N", help="End after so many epochs without an improvement."),
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
            help="Compute what is frozen once a sample: auto (if it is faster here), on, off,"
            " memory, or a folder; auto if left out. The results are the same.",
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was cut short.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show plan, frost line, memory and time; train and write nothing."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the tables.")
    ] = False,
) -> None:
    """Fine-tune a model with a part of it frozen, and prove that this part did not change.

    Without arguments: a small network that knows the digits 0-4 learns 5-9 from real scans, all
    frozen but its last block and a new head. Weights, plan, metrics and proof go to a new folder.
    Of a Hugging Face model the head trains, if nothing is said.

    Example: frostline finetune --train head --epochs 20 --lr 3e-3

    Example: frostline finetune --model google/vit-base-patch16-224 --data photos/ --dry-run

    Several processes: torchrun --nproc-per-node 2 -m frostline finetune job.yaml

    Next: frostline inspect runs/NAME/model.safetensors
    """
    given = {
        "model": model,
        "data": data,
        "task": task,
        "columns": _columns(columns),
        "max_length": max_length,
        "held_out": held_out,
        "broken": broken,
        "train": train,
        "freeze": freeze,
        "plan": plan,
        "schedule": schedule,
        "epochs": epochs,
        "early_stop": early_stop,
        "lr": lr,
        "lr_schedule": lr_schedule,
        "warmup": warmup,
        "optimizer": optimizer,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "mixed_precision": mixed_precision,
        "workers": workers,
        "weight_decay": weight_decay,
        "seed": seed,
        "out": out,
        "replay": replay,
    }
    flags = {name: value for name, value in given.items() if value not in (None, [], {})}
    if resume and (config or flags or dry_run):
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
        from frostline.finetune.engine import MainFailedError

        is_main = is_main_process()
        display = Display(notes(), quiet=not is_main)
        # What a user's model prints must not get among the results.
        with contextlib.redirect_stdout(sys.stderr), readable_warnings(display.note), display:
            try:
                if dry_run:
                    seen = _look(load_config(config, flags), display)
                elif resume:
                    result = job.resume(resume, display)
                else:
                    result = job.start(load_config(config, flags), display)
            except Interrupted as stopped:
                display.note(str(stopped))
                raise typer.Exit(_INTERRUPTED) from None
            except MainFailedError:
                raise typer.Exit(_FAILED) from None
    if dry_run:
        if is_main:
            _show_preview(seen, as_json=as_json)
        return
    if is_main and as_json:
        print_json(result.to_json())
    elif is_main:
        show(result, results())
    if not result.proof.ok:
        display.note(f"error: {result.proof.summary}")
        raise typer.Exit(_DOES_NOT_HOLD)


def is_main_process() -> bool:
    """Whether this process speaks: of several, as torchrun starts them, only the first does.

    >>> is_main_process()
    True
    """
    return os.environ.get("RANK", "0") == "0"


def _columns(given: list[str] | None) -> dict[str, str]:
    """The columns that were given as role=name.

    >>> _columns(["text=review", "label=stars"])
    {'text': 'review', 'label': 'stars'}
    """
    pairs = [pair.partition("=") for pair in given or []]
    for role, equals, name in pairs:
        if not (role and equals and name):
            raise typer.BadParameter("expected ROLE=NAME, as text=review", param_hint="--columns")
    return {role: name for role, _, name in pairs}


def _look(config: FinetuneConfig, display: Display) -> Preview:
    from frostline.finetune.dry_run import preview

    return preview(config, display)


def _show_preview(seen: Preview, *, as_json: bool) -> None:
    from frostline.cli.dry_run_view import show_preview

    if as_json:
        print_json(seen.to_json())
    else:
        show_preview(seen, results())
