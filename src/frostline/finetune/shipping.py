"""What a run leaves to be used: a delta with its configuration, or the whole weights."""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from frostline.checkpoint import read_delta, save_trained
from frostline.checkpoint.listing import read_listing
from frostline.errors import FrostlineError, OutputError
from frostline.files import replace_atomically
from frostline.finetune import run_folder
from frostline.finetune.disk_names import on_disk
from frostline.finetune.parts import Run
from frostline.finetune.sources.extras import quiet
from frostline.freezing import Plan, Rule
from frostline.selection import Selector, where


def ship(run: Run) -> str:
    """Write the tuned weights into the run's folder.

    A model that was loaded from a checkpoint gets a delta, beside its configuration, tokenizer and
    image processor; merged with the base they are a folder for ``from_pretrained``. Where loading
    has changed the tensors' names, so that the base can't be merged with, all of it is written. A
    model from code gets one file of weights.

    Returns:
        The command line to go on with.

    Raises:
        OutputError: (an OSError) the files can't be written.
    """
    sources, folder = run.job.setup.sources, run.folder
    model: Any = run.job.setup.model
    if sources.base is None or not hasattr(model, "save_pretrained"):
        replace_atomically(folder.path / run_folder.MODEL, lambda path: _save(model, path))
        return folder.inspect_command
    place = folder.path / run_folder.MODEL_FOLDER
    delta = place / run_folder.DELTA
    try:
        place.mkdir(exist_ok=True)
        for companion in (model.config, *sources.companions):
            companion.save_pretrained(str(place))
        if getattr(model, "can_generate", bool)():
            model.generation_config.save_pretrained(str(place))
        if _save_delta(run, delta) and not _strangers(sources.base, delta):
            return folder.merge_command(sources.base)
        delta.unlink(missing_ok=True)
        with quiet():
            model.save_pretrained(str(place))
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write {place}: {error.strerror or error}; make room, then resume"
        ) from error
    run.job.watcher.note(
        f"{place} holds the whole model, as {sources.base} names its tensors in another way than a"
        " model with this head does, and a delta could not be merged with it"
    )
    return f"frostline inspect {place}"


def _save_delta(run: Run, delta: Path) -> bool:
    """Write what was trained, under the names on disk; False if not only names differ there."""
    job = run.job
    found = on_disk(job.setup.model)
    if found is None:
        return False
    tensors = job.setup.model.state_dict(keep_vars=True)
    firsts = dict(chain(job.setup.model.named_parameters(), job.setup.model.named_buffers()))
    first_of = {id(tensor): name for name, tensor in firsts.items()}
    names = found.names
    base = {names[name]: job.base[first_of[id(tensor)]] for name, tensor in tensors.items()}
    new = {names[name] for name in job.setup.sources.new if name in names}
    trained = {names[name] for name in firsts if name in names} - {
        names[name] for name in job.setup.frozen.names if name in names
    }
    plan = job.setup.frozen.plan
    if found.is_renamed and job.setup.frozen.names:
        # Its selectors are of the names in memory; this one is written down by name.
        rules = [Rule(action="freeze", select="**"), Rule(action="train", select=_among(trained))]
        plan = Plan(rules=rules)
    include = _among(new) if new else None
    save_trained(found.model, delta, plan=plan, include=include, base=base)
    return True


def _among(names: Collection[str]) -> Selector:
    return where(lambda name, parameter: name in names)


def _strangers(base: Path, delta: Path) -> bool:
    """Whether the delta leaves a tensor to its base that the base does not have."""
    try:
        there = {tensor.name for tensor in read_listing(base).tensors}
    except FrostlineError:
        return True
    left = [entry for entry in read_delta(delta).tensors if not entry.stored]
    return any(there.isdisjoint(entry.names) for entry in left)


def _save(model: nn.Module, path: Path) -> None:
    """Write the weights; tied tensors once, as safetensors has it."""
    try:
        save_model(model, str(path))
    except SafetensorError as error:
        raise OSError(str(error)) from error
