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

import frostline as fl
from frostline.errors import (
    ConfigError,
    FrostlineError,
    ModelSourceError,
    OptimizerError,
    PlanError,
)
from frostline.finetune.blame import describe
from frostline.finetune.config import REPLAY_WORDS, FinetuneConfig
from frostline.finetune.data import FINETUNING_DIGITS, Split, Task, load_digits_task
from frostline.finetune.loop import epoch_seed
from frostline.finetune.models import load_model
from frostline.finetune.networks import PRETRAINED, DigitsCNN
from frostline.finetune.pretrain import pretrained_digits_cnn
from frostline.freezing import Frozen, Plan, Rule
from frostline.schedules import registry
from frostline.selection.suggest import nearest

# LBFGS evaluates the loss itself, several times a step; SparseAdam takes sparse gradients only.
_UNFIT = ("Optimizer", "LBFGS", "SparseAdam")


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What a job trains and with what.

    Attributes:
        task: the scans, on the model's device.
        model: the model, frozen according to the plan.
        frozen: the handle of the plan's freeze.
        make_optimizer: makes the configured optimizer for a model's trainable parameters.
        optimizer: the one for ``model``.
    """

    task: Task
    model: nn.Module
    frozen: Frozen
    make_optimizer: Callable[[nn.Module], Optimizer]
    optimizer: Optimizer


def prepare(
    config: FinetuneConfig,
    plan: Plan,
    note: Callable[[str], None],
    *,
    load: Callable[[nn.Module], object] = lambda model: None,
) -> Setup:
    """Load data and model, freeze, make the optimizer.

    Args:
        config: the job.
        plan: what to freeze; from :func:`plan_of`, or from the folder of a run that goes on.
        note: told in one line what takes long or went wrong without harm.
        load: called with the model before it is frozen, to fill it from a checkpoint.

    Raises:
        FrostlineError: whatever does not fit, with the mend.
    """
    optimizer_class = find_optimizer(config.optimizer)
    task = load_digits_task(FINETUNING_DIGITS, seed=config.seed)
    # Epochs count from 1, so 0 is free for the first weights.
    torch.manual_seed(epoch_seed(config.seed, 0))
    if config.model == PRETRAINED:
        model: nn.Module = _with_new_head(pretrained_digits_cnn(note), len(task.digits))
    else:
        model = load_model(config.model)
    task = _on_device_of(model, config.model, task)
    _try_forward(model, config.model, task)
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

    return Setup(
        task=task,
        model=model,
        frozen=frozen,
        make_optimizer=make_optimizer,
        optimizer=make_optimizer(model),
    )


def plan_of(config: FinetuneConfig) -> Plan:
    """The plan that the configuration asks for.

    Raises:
        ConfigError: it says nothing about what to train, and the model is not the default one.
        FrostlineError: the plan file or a selector is malformed.

    >>> print(plan_of(FinetuneConfig()))
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
    if not train and config.model == PRETRAINED:
        train = ("block3", "head")
    if not train:
        load_model(config.model)  # that there is no such model would be the first thing to say
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
    file, colon, factory = config.model.rpartition(":")
    is_file = bool(colon) and Path(file).is_file()
    return config.model_copy(
        update={
            "model": f"{Path(file).resolve()}:{factory}" if is_file else config.model,
            "plan": config.plan and config.plan.resolve(),
            "schedule": _absolute_schedule(config.schedule),
            "replay": config.replay
            if config.replay in REPLAY_WORDS
            else str(Path(config.replay).expanduser().resolve()),
        }
    )


def _absolute_schedule(schedule: Any) -> Any:
    is_file = isinstance(schedule, str) and schedule not in registry and Path(schedule).is_file()
    return str(Path(schedule).resolve()) if is_file else schedule


def _with_new_head(model: DigitsCNN, classes: int) -> DigitsCNN:
    """The same network with a fresh last layer: the old one tells other digits apart."""
    model.head = nn.Linear(model.head.in_features, classes)
    return model


def _on_device_of(model: nn.Module, source: str, task: Task) -> Task:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ModelSourceError(f"model {source!r} has no parameters: there is nothing to train")
    train, held_out = (_moved(part, parameter.device) for part in (task.train, task.held_out))
    return Task(digits=task.digits, train=train, held_out=held_out)


def _moved(split: Split, device: torch.device) -> Split:
    inputs, targets = split.inputs.to(device), split.targets.to(device)
    return Split(inputs=inputs, targets=targets, numbers=split.numbers)


def _try_forward(model: nn.Module, source: str, task: Task) -> None:
    """Raise ModelSourceError unless the model maps scans to one logit a digit."""
    scans = task.train.inputs[:2]
    expected = (len(scans), len(task.digits))
    wanted = f"expected logits of shape {expected} for scans of shape {tuple(scans.shape)}"
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            logits = model(scans)
    except Exception as error:
        raise ModelSourceError(
            f"model {source!r}: {wanted}; it raised {describe(error)}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    shape = getattr(logits, "shape", None)
    if shape is None or tuple(shape) != expected:
        got = type(logits).__name__ if shape is None else str(tuple(shape))
        raise ModelSourceError(f"model {source!r}: {wanted}, got {got}")
