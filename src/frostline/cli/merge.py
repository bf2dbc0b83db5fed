"""``frostline merge``: a base and a delta as a whole model."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.checkpoint_progress import checkpoint_progress
from frostline.cli.console import notes, print_json, results
from frostline.units import format_bytes, format_names, format_number_of

if TYPE_CHECKING:
    from frostline.checkpoint import Merged


def merge(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE",
            help="The model that the delta was trained on: .safetensors, .pt, a Hugging Face"
            " folder. It is only read.",
        ),
    ],
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="What fl.save_trained wrote.")],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="A new .safetensors file; for a folder, a new folder."),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Take configuration and tokenizer files from here, where the head is another;"
            " from beside the delta if left out, as 'frostline finetune' leaves them there.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the sentences.")
    ] = False,
) -> None:
    """Write the whole model that a base and a delta make.

    A folder keeps its shards, index, configuration and tokenizer, so that from_pretrained loads
    it. A delta of another base is refused. OUT is whole or not there.

    Example: frostline merge base/ tuned.safetensors merged/

    Next: frostline verify BASE OUT --plan plan.yaml
    """
    # Late: torch takes a second to load, and --help should not.
    from frostline.checkpoint import merge_delta

    with checkpoint_progress("merging") as progress:
        merged = merge_delta(base, delta, out, config=config, progress=progress)
    if merged.added and out.is_dir() and merged.config is None:
        notes().print(
            f"note: {format_names(merged.added)} is not in the base so; its configuration was"
            " copied as it is. Take the tuned model's with --config FOLDER",
            soft_wrap=True,
            markup=False,
        )
    if as_json:
        plain = asdict(merged)
        files = [str(file) for file in merged.files]
        taken = None if merged.config is None else str(merged.config)
        print_json({**plain, "path": str(out), "files": files, "config": taken})
        return
    _show(merged)
    names = " ".join(shlex.quote(str(path)) for path in (base, out))
    results().print(f"Next: frostline verify {names}", soft_wrap=True, markup=False)


def _show(merged: Merged) -> None:
    results().print(
        f"{merged.path}: {format_bytes(merged.nbytes)} in"
        f" {format_number_of(len(merged.files), 'file')};"
        f" {format_number_of(len(merged.replaced), 'tensor')} of the delta, the rest of the base.",
        soft_wrap=True,
        markup=False,
    )
