"""How good a model is on samples that it was not trained on, by the task's own measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frostline.finetune.engine import Engine
from frostline.finetune.loop import Batch, Epoch, stream_of
from frostline.finetune.sources.base import Kind

_IGNORED = -100
"""The target that Hugging Face gives to tokens that don't count."""

_OUTSIDE = "O"
"""The label of a token that is part of nothing."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model scores.

    Attributes:
        loss: mean cross-entropy of a target, in nats.
        accuracy: share of the targets that come first: of samples, for token classification of
            tokens, for causal language modelling of next tokens.
        f1: for token classification, of the tokens that are part of something (not ``O``).
        samples: how many samples there were.
    """

    loss: float
    accuracy: float
    f1: float | None
    samples: int

    @property
    def perplexity(self) -> float:
        """The loss as a number of equally likely choices."""
        return math.exp(min(self.loss, 700.0))


def followed(kind: Kind) -> str:
    """The measure by which the best epoch is chosen.

    >>> followed("causal-lm"), followed("token-classification"), followed("custom")
    ('loss', 'f1', 'accuracy')
    """
    return {"causal-lm": "loss", "token-classification": "f1"}.get(kind, "accuracy")


def is_better(new: Scores, old: Scores | None, kind: Kind) -> bool:
    """Whether an epoch beats the best one so far; where the measure is equal the loss decides."""
    return old is None or _rank(new, kind) > _rank(old, kind)


def _rank(scores: Scores, kind: Kind) -> tuple[float, float]:
    measure = followed(kind)
    first = 0.0 if measure == "loss" else getattr(scores, measure) or 0.0
    return first, -scores.loss


def evaluate(
    model: nn.Module,
    batches: Epoch,
    *,
    engine: Engine,
    kind: Kind,
    labels: Sequence[str] = (),
) -> Scores:
    """Score a model on every batch, over all processes; leaves it in eval mode.

    Args:
        model: the model itself, not what spreads it over processes.
        batches: as :func:`frostline.finetune.loop.train_epoch` takes them.
        engine: where it is computed.
        kind: the task.
        labels: names of the classes.
    """
    model.eval()
    tally = Tally(kind, labels)
    with torch.no_grad(), stream_of(batches) as stream:
        for batch in stream:
            with engine.autocast():
                tally.add(model, engine.to_device(batch))
    return tally.scores(engine)


class Tally:
    """Counts what :class:`Scores` are made of.

    Args:
        kind: the task.
        labels: names of the classes.
    """

    def __init__(self, kind: Kind, labels: Sequence[str]) -> None:
        self._kind = kind
        self._outside = labels.index(_OUTSIDE) if _OUTSIDE in labels else -1
        # Loss, targets, right ones, right and named, predicted as named, truly named, samples.
        self._counts: list[float] = [0.0] * 7

    def add(self, model: nn.Module, batch: Batch) -> None:
        """Let the model predict one batch, and count."""
        logits, targets = self._predict(model, batch)
        samples = len(targets)
        if self._kind == "causal-lm":
            logits, targets = logits[:, :-1], targets[:, 1:]
        logits, targets = logits.flatten(0, -2), targets.flatten()
        counted = targets != _IGNORED
        logits, targets = logits[counted].float(), targets[counted]
        if not len(targets):
            return
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
        best = logits.argmax(dim=-1)
        right, told, named = best == targets, best != self._outside, targets != self._outside
        found = (len(targets), right.sum(), (right & named).sum(), told.sum(), named.sum(), samples)
        for place, number in enumerate((loss, *found)):
            self._counts[place] += float(torch.as_tensor(number))

    def scores(self, engine: Engine) -> Scores:
        """What was counted, in all processes together."""
        loss, targets, right, hits, told, named, samples = engine.total(self._counts)
        f1 = 2 * hits / (told + named) if told + named else 0.0
        return Scores(
            loss=loss / max(targets, 1.0),
            accuracy=right / max(targets, 1.0),
            f1=f1 if self._kind == "token-classification" else None,
            samples=int(samples),
        )

    def _predict(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if isinstance(batch, Mapping):
            # Without the labels the model would not compute its loss, but it may be given them:
            # replay then sees the call that it has recorded.
            return model(**batch).logits, batch["labels"]
        inputs, targets = batch
        return model(inputs), targets
