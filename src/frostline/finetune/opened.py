"""A model to look at: alone, with the data that it is to learn from, or as a run trained it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

import frostline as fl
from frostline.errors import ConfigError
from frostline.finetune import run_folder
from frostline.finetune.config import FinetuneConfig, load_config
from frostline.finetune.loop import model_inputs
from frostline.finetune.prepare import first_batch, open_job, open_named, prepare
from frostline.finetune.run_folder import is_run
from frostline.freezing import Plan

_SAMPLES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A model, and what is known of its training.

    Attributes:
        model: frozen by the plan; as it was before the first step.
        plan: what was applied; None for the model as it comes.
        optimizer: what a run stepped it with; None where there is no run.
        example: what the model is called with, a few samples; None where no data are known.
    """

    model: nn.Module
    plan: Plan | None = None
    optimizer: Optimizer | None = None
    example: Any = None


def open_to_look(
    source: str,
    *,
    data: str | None = None,
    plan: Plan | None = None,
    note: Callable[[str], object] = lambda line: None,
) -> Opened:
    """Open what ``source`` names, and freeze it by the plan.

    Args:
        source: a model as ``frostline finetune`` takes it, or the folder of a run, which brings
            its data, its plan and its optimizer.
        data: data as ``frostline finetune`` takes them: the head is sized to them.
        plan: what to freeze; None for a run's own plan, and else for the model as it comes.
        note: told in one line what takes long.

    Raises:
        FrostlineError: there is no such model or data, or they don't fit each other or the plan.

    >>> open_to_look("tutorial", plan=Plan.all_but("fc2")).model.fc1.weight.requires_grad
    False
    """
    if is_run(Path(source)):
        if data is not None:
            raise ConfigError(f"--data: the run {source} has its own data; leave it out")
        return _open_run(Path(source), plan, note)
    if data is None:
        from frostline.finetune.sources.opening import open_model

        model, example = open_model(source, note=note), None
    else:
        sources = open_named(FinetuneConfig(model=source, data=data), note)
        model = sources.model
        count = min(_SAMPLES, len(sources.train))  # type: ignore[arg-type]
        example = model_inputs(sources.collate([sources.train[at] for at in range(count)]))
    if plan is not None:
        fl.freeze(model, plan)
    return Opened(model=model, plan=plan, example=example)


def _open_run(folder: Path, plan: Plan | None, note: Callable[[str], object]) -> Opened:
    config = load_config(folder / run_folder.CONFIG)
    plan = plan or Plan.load(folder / run_folder.PLAN)
    sources, engine = open_job(config, note)
    setup = prepare(config, plan, sources, engine)
    return Opened(
        model=setup.model,
        plan=plan,
        optimizer=setup.optimizer,
        example=model_inputs(first_batch(setup, _SAMPLES)),
    )


def shape_of_run(folder: Path) -> nn.Module | None:
    """The model that a run has tuned, without weights, frozen by nothing yet.

    Returns:
        None if the folder is no run, or its model is from code, or nothing was shipped yet.

    >>> shape_of_run(Path("nowhere")) is None
    True
    """
    tuned = folder / run_folder.MODEL_FOLDER
    if not (is_run(folder) and (tuned / "config.json").is_file()):
        return None
    from frostline.finetune.sources.kinds import HEADS
    from frostline.finetune.sources.pretrained import without_weights

    kind = run_folder.RunFolder(folder).read_json(run_folder.RESULT).get("kind")
    found = next((each for each in HEADS if each == kind), None)
    return None if found is None else without_weights(tuned, found)
