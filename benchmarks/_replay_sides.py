"""The sides that are measured: way four by hand, the same with replay, and the live part alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from _replay_jobs import BATCH, Setting
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import frostline as fl

LEARNING_RATE = 1e-3


class Side:
    """One model in one training loop.

    Args:
        set_modes: puts the modules in train or eval mode, as a loop does before each epoch.
        batches: begins an epoch: (inputs, labels).
        logits: what is called on the inputs.
        optimizer: of what trains.

    Attributes:
        losses: of every step so far.
    """

    def __init__(
        self,
        set_modes: Callable[[], object],
        batches: Callable[[], Iterable[Any]],
        logits: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._set_modes = set_modes
        self._batches = batches
        self._logits = logits
        self._optimizer = optimizer
        self.losses: list[Tensor] = []

    def epoch(self, number: int) -> float:
        """Train an epoch, in seconds; its number decides order and dropout, on all sides alike."""
        torch.manual_seed(number)
        start = perf_counter()
        self._set_modes()
        for inputs, labels in self._batches():
            self._optimizer.zero_grad()
            loss = F.cross_entropy(self._logits(inputs), labels)
            loss.backward()
            self._optimizer.step()
            self.losses.append(loss.detach())
        return perf_counter() - start


def loader_of(data: Dataset[Any]) -> DataLoader[Any]:
    """Shuffled batches of 32, loaded in the process itself."""
    return DataLoader(data, batch_size=BATCH, shuffle=True)


def by_hand(base: nn.Module, setting: Setting, data: Dataset[Any]) -> Side:
    """Way four as people write it: flags, eval mode of the backbone, a filtered optimizer."""
    model = _frozen_by_hand(base, setting)
    loader = loader_of(data)
    return Side(
        lambda: _set_modes(model, setting),
        lambda: loader,
        lambda inputs: model(inputs).logits,
        _optimizer(model),
    )


def replayed(base: nn.Module, setting: Setting, data: Dataset[Any], **options: Any) -> Side:
    """Way four by Frostline, with the one line changed that replays."""
    model = copy.deepcopy(base)
    fl.freeze(model, all_but=list(setting.trains))
    optimizer = fl.optimizer(torch.optim.AdamW, model, lr=LEARNING_RATE)
    loader = loader_of(data)
    return Side(
        model.train,
        lambda: fl.replay(model, loader, **options),
        lambda inputs: model(inputs).logits,
        optimizer,
    )


def suffix_alone(base: nn.Module, setting: Setting, data: Dataset[Any]) -> Side:
    """The limit: what trains, on features that were computed by hand, outside of the timing."""
    model = _frozen_by_hand(base, setting)
    _set_modes(model, setting)
    with torch.no_grad():
        batches = list(DataLoader(data, batch_size=BATCH))
        features = torch.cat([setting.features(model, inputs) for inputs, _ in batches])
        _check(model, setting, batches[0][0])
    loader = loader_of(TensorDataset(features, torch.cat([labels for _, labels in batches])))
    return Side(
        lambda: _set_modes(model, setting),
        lambda: loader,
        lambda inputs: setting.suffix(model, inputs),
        _optimizer(model),
    )


def same_losses(one: Side, other: Side) -> str:
    """Whether two sides had the same losses in every step, to the bit."""
    left, right = torch.stack(one.losses), torch.stack(other.losses)
    if torch.equal(left, right):
        return "same bits"
    steps = int((left != right).sum())
    return f"{steps} of {len(left)} differ, by {float((left - right).abs().max()):.0e} at most"


def with_new_head(base: nn.Module, setting: Setting, *, seed: int) -> nn.Module:
    """A copy whose last trained module, the head, starts from other weights."""
    model = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.get_submodule(setting.trains[-1]).parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def _frozen_by_hand(base: nn.Module, setting: Setting) -> Any:
    model = copy.deepcopy(base)
    model.requires_grad_(False)
    for name in setting.trains:
        model.get_submodule(name).requires_grad_(True)
    return model


def _set_modes(model: Any, setting: Setting) -> None:
    model.train()
    model.base_model.eval()
    for name in setting.trains:
        model.get_submodule(name).train()


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trainable, lr=LEARNING_RATE)


def _check(model: Any, setting: Setting, inputs: Tensor) -> None:
    """See that features and suffix, written by hand, are the model."""
    model.eval()
    expected = model(inputs).logits
    found = setting.suffix(model, setting.features(model, inputs))
    assert torch.allclose(found, expected, atol=1e-4), "the suffix by hand is not the model's"
    _set_modes(model, setting)
