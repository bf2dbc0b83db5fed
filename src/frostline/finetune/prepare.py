"""From a configuration to what the loop needs: task, model, freeze, optimizer.

Everything that can be wrong with a configuration shows here, before a run folder is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

import frostline as fl
from frostline.errors import (
    ConfigError,
    FrostlineError,
    OptimizerError,
    PlanError,
)
from frostline.finetune.config import REPLAY_WORDS, FinetuneConfig
from frostline.finetune.digits import DIGITS, open_digits
from frostline.finetune.engine import Engine
from frostline.finetune.loading import Batches, epoch_seed, make_loader
from frostline.finetune.loop import Batch
from frostline.finetune.sources.base import Sources
from frostline.freezing import Frozen, Plan, Rule
from frostline.schedules import registry
from frostline.selection.suggest import nearest

# LBFGS evaluates the loss itself, several times a step; SparseAdam takes sparse gradients only.
_UNFIT = ("Optimizer", "LBFGS", "SparseAdam")


_HELD_OUT_FACTOR = 2
"""Samples that are scored at once, for each that trains: a forward pass alone needs less memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What a job trains and with what.

    Attributes:
        sources: the model and the data, as they were opened.
        engine: where it is computed.
        model: the model, frozen according to the plan, on the device.
        train: loads the samples to train on.
        held_out: loads the others.
        batches: decides the order of ``train``; its ``epoch`` is set by :meth:`begin_epoch`.
        frozen: the handle of the plan's freeze.
        make_optimizer: makes the configured optimizer for a model's trainable parameters.
        optimizer: the one for ``model``.
    """

    sources: Sources
    engine: Engine
    model: nn.Module
    train: DataLoader[Any]
    held_out: DataLoader[Any]
    batches: Batches
    frozen: Frozen
    make_optimizer: Callable[[nn.Module], Optimizer]
    optimizer: Optimizer

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """Have the loaders give what they give in this epoch, whatever they have given before.

        Args:
            seed: the run's seed.
            epoch: number of the epoch, from 1.
        """
        self.batches.epoch = epoch
        for loader in (self.train, self.held_out):
            loader.generator.manual_seed(epoch_seed(seed, epoch, self.engine.rank))


def open_job(config: FinetuneConfig, note: Callable[[str], object]) -> tuple[Sources, Engine]:
    """Open the model and the data, and find out where to compute.

    Args:
        config: the job.
        note: told in one line what takes long or went wrong without harm.

    Raises:
        FrostlineError: a model or data that can't be opened or don't fit each other, with the mend.
    """
    with Engine().main_first():
        sources = open_named(config, note)
    for text in sources.notes:
        note(text)
    # Only now: opening the default job's model trains it, in full precision.
    return sources, Engine(config.mixed_precision)


def open_named(config: FinetuneConfig, note: Callable[[str], object]) -> Sources:
    """Open the model and the data that a configuration names.

    Args:
        config: the job.
        note: told in one line what takes long.

    Raises:
        FrostlineError: as :func:`open_job`.
    """
    if config.data != DIGITS and "model" not in config.model_fields_set:
        raise ConfigError(f"what should learn from {config.data}? Give --model FOLDER or NAME")
    # Epochs count from 1, so 0 is free for the first weights.
    torch.manual_seed(epoch_seed(config.seed, 0))
    if config.data == DIGITS:
        return _open_digits(config, note)
    from frostline.finetune.sources.opening import open_sources

    return open_sources(
        model=config.model,
        data=config.data,
        kind=config.task,
        seed=config.seed,
        held_out=config.held_out,
        columns=config.columns,
        max_length=config.max_length,
        broken=config.broken,
        note=note,
    )


def prepare(
    config: FinetuneConfig,
    plan: Plan,
    sources: Sources,
    engine: Engine,
    *,
    load: Callable[[nn.Module], object] = lambda model: None,
) -> Setup:
    """Freeze, make loaders and the optimizer.

    Args:
        config: the job.
        plan: what to freeze; from :func:`plan_of`, or from the folder of a run that goes on.
        sources: the model and the data.
        engine: where it is computed.
        load: called with the model before it is frozen, to fill it from a checkpoint.

    Raises:
        FrostlineError: whatever does not fit, with the mend.
    """
    optimizer_class = find_optimizer(config.optimizer)
    model = sources.model.to(engine.device)
    load(model)
    frozen = fl.freeze(model, plan)
    if not frozen.names and config.schedule is None:
        raise PlanError(
            "this freezes nothing, so there is nothing to prove or to save: train less of it"
        )

    def make_optimizer(model: nn.Module) -> Optimizer:
        options = dict(config.optimizer_options)
        if config.weight_decay is not None:
            options["weight_decay"] = config.weight_decay
        try:
            return fl.optimizer(optimizer_class, model, lr=config.lr, **options)
        except FrostlineError:
            raise
        except (TypeError, ValueError) as error:  # torch's own complaint about a value
            raise OptimizerError(f"optimizer {config.optimizer}: {error}") from error

    where = {"rank": engine.rank, "ranks": engine.ranks}
    count, size = len(sources.train), config.batch_size  # type: ignore[arg-type]
    batches = Batches(count, size, seed=config.seed, **where)
    others = Batches(
        len(sources.held_out),  # type: ignore[arg-type]
        size * _HELD_OUT_FACTOR,
        **where,
    )
    workers = config.workers
    return Setup(
        sources=sources,
        engine=engine,
        model=model,
        train=make_loader(sources.train, sources.collate, batches, workers=workers),
        held_out=make_loader(sources.held_out, sources.collate, others, workers=workers),
        batches=batches,
        frozen=frozen,
        make_optimizer=make_optimizer,
        optimizer=make_optimizer(model),
    )


def first_batch(setup: Setup, size: int) -> Batch:
    """The first samples as one batch, on the device; nothing is drawn, and no worker started."""
    count = min(size, len(setup.sources.train))  # type: ignore[arg-type]
    batch = setup.sources.collate([setup.sources.train[place] for place in range(count)])
    return setup.engine.to_device(batch)


def _open_digits(config: FinetuneConfig, note: Callable[[str], object]) -> Sources:
    if (Path(config.model) / "config.json").is_file():
        raise ConfigError(
            f"what should {config.model} learn from? Give --data FOLDER, FILE or NAME"
        )
    return open_digits(config.model, seed=config.seed, held_out=config.held_out, note=note)


def plan_of(config: FinetuneConfig, head: tuple[str, ...] = ()) -> Plan:
    """The plan that the configuration asks for.

    Args:
        config: the job.
        head: selectors of what is trained if it says nothing.

    Raises:
        ConfigError: it says nothing about what to train, and there is no head to go by.
        FrostlineError: the plan file or a selector is malformed.

    >>> print(plan_of(FinetuneConfig(), ("block3", "head")))
    freeze: **; train: block3; train: head

    With a schedule it is what the schedule leaves as it is: nothing, unless it is asked for.

    >>> print(plan_of(FinetuneConfig(schedule="lisa")))
    train: **
    """
    if config.plan:
        return Plan.load(config.plan)
    if config.freeze:
        return Plan(rules=[Rule(action="freeze", select=name) for name in config.freeze])
    train = config.train
    if not train and config.schedule is not None:
        return Plan(rules=[Rule(action="train", select="**")])
    train = train or head
    if not train:
        raise ConfigError(
            f"what should be trained of {config.model}? Give --train NAME, --freeze NAME, --plan"
            f" FILE or --schedule NAME ('frostline inspect {config.model}' shows the names)"
        )
    everything = Rule(action="freeze", select="**")
    return Plan(rules=[everything, *(Rule(action="train", select=name) for name in train)])


def find_optimizer(name: str) -> type[Optimizer]:
    """The class in ``torch.optim`` of that name; raises ConfigError with the nearest names.

    >>> find_optimizer("SGD")
    <class 'torch.optim.sgd.SGD'>
    """
    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, Optimizer) and key not in _UNFIT
    }
    if name in known:
        return known[name]
    if name in _UNFIT:
        raise ConfigError(f"optimizer {name} needs another loop than this command's: take AdamW")
    raise ConfigError(f"torch.optim has no optimizer {name!r}.{nearest(name, known)}")


def with_absolute_paths(config: FinetuneConfig) -> FinetuneConfig:
    """The configuration with the files that it names found from any folder."""
    return config.model_copy(
        update={
            "model": _absolute(config.model),
            "data": _absolute(config.data),
            "plan": config.plan and config.plan.resolve(),
            "schedule": _absolute_schedule(config.schedule),
            "replay": config.replay
            if config.replay in REPLAY_WORDS
            else str(Path(config.replay).expanduser().resolve()),
        }
    )


def _absolute(source: str) -> str:
    """A file, a folder, or a factory in a file as an absolute path; another name as it is."""
    file, colon, factory = source.rpartition(":")
    if colon and Path(file).is_file():
        return f"{Path(file).absolute()}:{factory}"
    return str(Path(source).absolute()) if source != DIGITS and Path(source).exists() else source


def _absolute_schedule(schedule: Any) -> Any:
    is_file = isinstance(schedule, str) and schedule not in registry and Path(schedule).is_file()
    return str(Path(schedule).resolve()) if is_file else schedule
