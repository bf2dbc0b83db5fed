"""One training of a Trainer, from its first step to its proof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerState, TrainingArguments

from frostline.freezer.arguments import inner_optimizer
from frostline.freezing import Frozen
from frostline.guard import guard
from frostline.guard.session import Guard
from frostline.integrations.huggingface.base import declare, refuse_other_base
from frostline.integrations.huggingface.carried import Carrier, take_carried
from frostline.integrations.huggingface.phases import resume_phases, start_phases
from frostline.optim import optimizer_state
from frostline.schedules import Schedule


class Training:
    """Holds what lives as long as one ``trainer.train()``.

    Args:
        model: the model, without wrappers.
        optimizer: the Trainer's, a loaded checkpoint's state in it.
        base: what is frozen for good, in force already; None if nothing is.
        schedule: when to freeze what else, or None.
        args: the Trainer's arguments.
        state: the Trainer's state.
        loader: the training batches.

    Attributes:
        phases: the schedule at work, or None.
        is_running: until :meth:`conclude`.

    Raises:
        PlanError, ScheduleError: (ValueErrors) the checkpoint that was loaded is of a run that
            froze something else. Nothing is watched then.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        base: Frozen | None,
        schedule: Schedule | None,
        args: TrainingArguments,
        state: TrainerState,
        loader: object,
    ) -> None:
        self.is_running = True
        self._model = model
        self._optimizer = inner_optimizer(optimizer)
        self._base = base
        self._state = state
        self._first_step = state.global_step
        self._guard: Guard | None = None
        self._result: dict[str, Any] | None = None
        carried = take_carried(self._optimizer)
        # Of a run without this callback nothing is carried; it may be gone on with all the same.
        saved = None if not state.global_step or carried is None else carried
        if saved is not None:
            refuse_other_base(saved["base"], base)
        by_name = optimizer_state(self._optimizer, model) if schedule is not None else {}
        declare(model, self._optimizer)
        self.phases = None
        if schedule is not None:
            self.phases = start_phases(
                model, self._optimizer, schedule, base=base, args=args, state=state, loader=loader
            )
            if state.global_step:
                try:
                    resume_phases(self.phases, (saved or {}).get("phases"), by_name)
                except ValueError:
                    self.phases.freezer.close()
                    raise
        self._carrier = Carrier(self._optimizer, self._carried)

    def guard(self) -> None:
        """Watch from now on."""
        self._guard = guard(self._model, self._optimizer)
        self._guard.start()

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """An evaluation has brought its metrics."""
        if self.phases is not None:
            self.phases.evaluated(metrics)

    def ends_whole_epoch(self) -> bool:
        """Whether the epoch that ends now began in this training."""
        made = self._state.global_step - self._first_step
        return made * (self._state.epoch or 1.0) >= self._state.global_step

    def conclude(self) -> dict[str, Any]:
        """Prove all that is frozen and stop watching; a second call gives the same result.

        Returns:
            What was proven: tensors, bytes, steps that were watched.

        Raises:
            FrozenChangedError: (a RuntimeError) something moved.
        """
        if self._result is not None:
            return self._result
        self.is_running = False
        self._carrier.remove()
        watched = 0
        if self._guard is not None:
            self._guard.stop()
            watched = self._guard.report.steps
        proofs = [self._base.verify()] if self._base is not None else []
        if self.phases is not None and self.phases.freezer.frozen:
            proofs.append(self.phases.freezer.verify())
        self._result = {
            "frozen_tensors": sum(proof.tensors for proof in proofs),
            "frozen_bytes": sum(proof.bytes for proof in proofs),
            "frozen_steps_guarded": watched,
        }
        return self._result

    def close(self) -> None:
        """Let go of model and optimizer, as before another training."""
        self.is_running = False
        self._carrier.remove()
        if self._guard is not None:
            self._guard.stop(check=False)
        if self.phases is not None:
            self.phases.freezer.close()

    def _carried(self) -> dict[str, Any]:
        return {
            "base": None if self._base is None else self._base.state_dict(),
            "phases": None if self.phases is None else self.phases.state_dict(),
        }
