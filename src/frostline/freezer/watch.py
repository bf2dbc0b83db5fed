"""Is this a step boundary? Seen by the optimizer's steps and the model's forwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from frostline.errors import TransitionError

_PATIENCE_CALLS = 1000


class StepWatch:
    """Knows whether the optimizer has stepped, and whether a forward has come since.

    Gradients stay on the parameters after ``optimizer.step()`` until the loop clears them, so that
    they are there says nothing. They are pending if a training forward ran since the last step.

    Args:
        model: the model that the loop calls.
        optimizer: the optimizer that the loop steps.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model = model
        self._stepped = False
        self._forwarded = False
        self._idle_calls = 0
        self._handles: list[Any] = [
            optimizer.register_step_post_hook(self._after_step),
            model.register_forward_pre_hook(self._before_forward),
        ]

    def take_step(self) -> bool:
        """Whether the optimizer has stepped since this was last asked.

        Raises:
            TransitionError: it never does.
        """
        if self._stepped:
            self._stepped, self._idle_calls = False, 0
            return True
        self._idle_calls += 1
        if self._idle_calls == _PATIENCE_CALLS:
            raise TransitionError(
                f"freezer.step() was called {_PATIENCE_CALLS} times and the optimizer that the"
                " freezer was given did not step once. Give the freezer the optimizer that the"
                " loop steps, and call freezer.step() after optimizer.step()"
            )
        return False

    def give_back_step(self) -> None:
        """The step was not used after all: the next call may take it."""
        self._stepped = True

    def refuse_pending(self) -> None:
        """Raise TransitionError if gradients wait that no optimizer step has used."""
        if not self._forwarded:
            return
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None and bool(parameter.grad.any()):
                raise TransitionError(
                    f"{name} has a gradient from a forward after the last optimizer step, so this"
                    " is the middle of a step: call freezer.step() right after optimizer.step(),"
                    " before the next forward, and evaluate in eval mode or under torch.no_grad()"
                )

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _after_step(self, *_: object) -> None:
        self._stepped, self._forwarded = True, False

    def _before_forward(self, module: nn.Module, args: object) -> None:
        if module.training and torch.is_grad_enabled():
            self._forwarded = True
