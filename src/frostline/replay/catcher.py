"""Catches the calls of a model's modules while a batch is open, and says who makes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from frostline.replay.compiled import called_modules
from frostline.replay.stand_in import Forward, StandIns


class Maker(Protocol):
    """Makes caught calls, or stands in for them."""

    def call(self, name: str, module: nn.Module, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Make one call."""
        ...


class Catcher:
    """Tells top-level calls, which the user's loop makes, from those that a model makes inside.

    Args:
        model: the whole model.
        top_level: makes a top-level call; what it calls in turn goes to the maker that
            :meth:`direct` named, or straight to the modules.
    """

    def __init__(self, model: nn.Module, top_level: Maker) -> None:
        self._model = model
        self._top_level = top_level
        self._maker: Maker | None = None
        self._is_inside = False
        self._entries: set[str] = set()
        self._was_entered = False
        self._times_open = 0
        self._stand_ins = StandIns(self._handle)
        self._modules: dict[str, nn.Module] | None = None

    @contextmanager
    def open(self, names: Iterable[str]) -> Iterator[None]:
        """Catch calls while this is open: of the modules named, and of those that loops call.

        Which these are is found out by catching all, until one is called; and again after a batch
        in which none of them was. Several batches may be open at a time, and be closed in any
        order.
        """
        if not self._times_open:
            self._was_entered = False
        self._times_open += 1
        try:
            self.cover({*self._entries, *names} if self._entries else None)
            yield
        finally:
            self._times_open -= 1
            if not self._times_open:
                self._close()

    def _close(self) -> None:
        self._stand_ins.close()
        self._maker, self._is_inside = None, False
        if not self._was_entered:
            self._entries.clear()

    def cover(self, names: Iterable[str] | None) -> None:
        """Catch the calls of these modules, too; None is for all."""
        if self._modules is None:
            self._modules = called_modules(self._model)
        modules = self._modules
        if names is not None:
            modules = {name: modules[name] for name in names if name in modules}
        self._stand_ins.cover(modules)

    @property
    def was_entered(self) -> bool:
        """Whether a module was called in the batch that is open, or was last."""
        return self._was_entered

    def refresh(self) -> None:
        """The model may have other modules than before."""
        self._modules = None

    def direct(self, maker: Maker | None) -> None:
        """Let a maker make what is caught; None lets the modules do."""
        self._maker = maker

    def _handle(
        self, name: str, module: nn.Module, forward: Forward, args: Any, kwargs: Any
    ) -> Any:
        if self._maker is not None:
            return self._maker.call(name, module, forward, args, kwargs)
        if self._is_inside or _in_backward():
            return forward(*args, **kwargs)
        self._was_entered = True
        self._entries.add(name)
        self._is_inside = True
        try:
            return self._top_level.call(name, module, forward, args, kwargs)
        finally:
            self._is_inside = False


def _in_backward() -> bool:
    """Whether autograd runs just now, as when a checkpointed block is computed again."""
    return bool(torch._C._current_graph_task_id() != -1)
