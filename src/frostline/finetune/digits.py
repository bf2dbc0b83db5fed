"""The default job's sources: real scans of digits, and a network that knows other digits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import default_collate

from frostline.errors import ModelSourceError
from frostline.finetune.blame import describe
from frostline.finetune.data import FINETUNING_DIGITS, Task, load_digits_task, scans_version
from frostline.finetune.models import load_model
from frostline.finetune.networks import PRETRAINED, DigitsCNN
from frostline.finetune.pretrain import pretrained_digits_cnn
from frostline.finetune.sources.base import Sources

DIGITS = "digits"
"""What ``--data`` says for them."""


def open_digits(
    model: str, *, seed: int, held_out: float, note: Callable[[str], object] = lambda text: None
) -> Sources:
    """The digits 5-9 and a model for them.

    Args:
        model: ``digits-cnn`` is taken pretrained on 0-4, with a new head drawn from the global
            generator; else a built-in name or a factory, whose model is taken as it is.
        seed: decides which scans are held out.
        held_out: the share that is, of each digit.
        note: told in one line what takes long or went wrong without harm.

    Raises:
        FrostlineError: the model can't be built, or does not fit the scans.

    >>> sources = open_digits("digits-cnn", seed=0, held_out=0.25)
    >>> sources.kind, sources.head, len(sources.train)
    ('custom', ('block3', 'head'), 671)
    """
    task = load_digits_task(FINETUNING_DIGITS, seed=seed, held_out=held_out)
    is_ours = model == PRETRAINED
    if is_ours:
        built: nn.Module = _with_new_head(pretrained_digits_cnn(note), len(task.digits))
    else:
        built = load_model(model)
    _try_forward(built, model, task)
    return Sources(
        kind="custom",
        model=built,
        train=task.train,
        held_out=task.held_out,
        collate=default_collate,
        labels=tuple(str(digit) for digit in task.digits),
        head=("block3", "head") if is_ours else (),
        new=("head.weight", "head.bias") if is_ours else (),
        companions=(),
        base=None,
        notes=(),
        identity=f"scikit-learn {scans_version()}, digits {task.digits}, seed {seed}, {held_out}",
    )


def _with_new_head(model: DigitsCNN, classes: int) -> DigitsCNN:
    """The same network with a fresh last layer: the old one tells other digits apart."""
    model.head = nn.Linear(model.head.in_features, classes)
    return model


def _try_forward(model: nn.Module, source: str, task: Task) -> None:
    """Raise ModelSourceError unless the model maps scans to one logit a digit."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ModelSourceError(f"model {source!r} has no parameters: there is nothing to train")
    scans = task.train.inputs[:2].to(parameter.device)
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
