"""Replay in a loop that is not ours: samples are named by what the model is given of them."""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from frostline.replay import Replayer
from frostline.replay.content import chained, sample_digests
from frostline.replay.nest import open_nest


class ReplayedForward:
    """A model's ``forward`` that replays what is frozen while the model trains, until removed.

    The Trainer reads batches ahead, skips some when it resumes, and moves them between devices
    and processes, so a batch's numbers in the data set do not reach the model. Its content does,
    and names its samples as well: the same content, the same name, in every epoch.

    Args:
        model: the model, without wrappers, prepared as it is to run (autocast and the like).
        store: as :class:`frostline.Replayer` takes it.
        ranks: processes that share the samples, each epoch in another way.

    Attributes:
        model: the model.
        replayer: does the work, and tells what it did.
        declined: why nothing is replayed any more, or None.

    >>> import frostline as fl
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> frozen = fl.freeze(model, all_but="2")
    >>> forward, x = ReplayedForward(model, "memory"), torch.randn(6, 8)
    >>> for epoch in range(3):
    ...     for batch in x[torch.randperm(6)].split(3):
    ...         _ = model(batch)
    >>> forward.replayer.stats.recorded, forward.replayer.stats.replayed
    (2, 4)
    >>> forward.remove()
    """

    def __init__(self, model: nn.Module, store: str | Path, *, ranks: int = 1) -> None:
        self.replayer = Replayer(model, store=store)
        self.model = model
        self._is_open = False
        self._before: Any = None
        self._known: set[int] = set()
        self._seen = self._new = 0
        self._whole_epochs_to_wait = ranks
        self._varies: str | None = None
        self.install()

    def install(self) -> None:
        """Take the place of the model's forward, as it is now."""
        self._before = vars(self.model).get("forward")
        # Under this name `inspect.signature` finds the true one: trainers look at it.
        self.__wrapped__ = self.model.forward
        self.model.forward = self

    def remove(self) -> None:
        """Put the model's forward back, unless somebody else has replaced it meanwhile."""
        if vars(self.model).get("forward") is not self:
            return
        if self._before is None:
            del self.model.forward
        else:
            self.model.forward = self._before

    @property
    def declined(self) -> str | None:
        """Why nothing is replayed (any more); None while all is well."""
        return self._varies or self.replayer.declined

    def end_epoch(self, *, is_whole: bool) -> None:
        """An epoch is over: flush what was recorded, and see whether samples come again.

        Args:
            is_whole: whether it went over all samples, as one that a resumed run only finished
                did not.

        Raises:
            ReplayError: frozen tensors were rewritten while what they had given was replayed.
        """
        self.replayer.passes.end_epoch()
        if self._whole_epochs_to_wait <= 0 and 2 * self._new > self._seen:
            self._varies = (
                f"{self._new} of {self._seen} samples of the last epoch were not like those of the"
                " epochs before: pad all texts to one length (padding='max_length'), and switch"
                " random augmentation off"
            )
            self._known.clear()
        self._whole_epochs_to_wait -= is_whole
        self._seen = self._new = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, what is frozen replayed if it trains."""
        if self._is_open:
            # Sentence-transformers write what they compute into the dict that they are given: each
            # pass of one call, such as the trial that looks for the cut, gets its own.
            own = (dict(given) if type(given) is dict else given for given in args)
            return self.__wrapped__(*own, **kwargs)
        trains = self.model.training and torch.is_grad_enabled()
        if not trains or self._varies:
            return self.__wrapped__(*args, **kwargs)
        names = sample_names(args, kwargs)
        self._seen += len(names)
        self._new += len(set(names) - self._known)
        self._known.update(names)
        self._is_open = True
        try:
            with self.replayer.samples(names):
                # Through the model again: while samples are open its forward is the replayer's.
                return self.model.forward(*args, **kwargs)
        finally:
            self._is_open = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _own_forward(memo.get(id(self.model), self.model))

    def __reduce__(self) -> tuple[Any, ...]:
        return _own_forward, (self.model,)


def sample_names(*given: Any) -> list[int]:
    """For each sample of a batch a whole number made of its part of all tensors; [] if none is.

    The largest tensor's first dimension counts the samples; tensors of another length do not
    help to name them. What differs in those alone is told apart by the replayer itself.

    >>> one, other, same = sample_names({"x": torch.tensor([[1, 2], [3, 4], [1, 2]])})
    >>> one == same, one == other
    (True, False)
    """
    tensors = [tensor for tensor in open_nest(given).tensors if tensor.ndim and tensor.numel()]
    if not tensors:
        return []
    samples = max(tensors, key=torch.Tensor.numel).shape[0]
    columns = [sample_digests(t, samples) for t in tensors if t.shape[0] == samples]
    digests = chained([b""] * samples, columns)
    return [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]


def _own_forward(module: nn.Module) -> Any:
    return MethodType(type(module).forward, module)
