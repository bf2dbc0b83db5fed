"""``FrostlineCallback``: freezing, schedules, proof and replay in the Trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from frostline.errors import ReplayError
from frostline.freezer import Freezer
from frostline.freezer.arguments import as_schedule
from frostline.freezing import Frozen
from frostline.freezing.decide import decide
from frostline.integrations.huggingface.base import freeze_base
from frostline.integrations.huggingface.replayed import ReplayedForward
from frostline.integrations.huggingface.training import Training
from frostline.integrations.plans import PlanLike, as_plan
from frostline.naming import take_inventory
from frostline.replay import Replayer
from frostline.schedules import Schedule

_logger = logging.getLogger("frostline")


class FrostlineCallback(TrainerCallback):
    """Freezes a Trainer's model, carries out a schedule, proves what was frozen, and replays it.

    ``Trainer(model, args, …, callbacks=[FrostlineCallback(plan)])`` is all there is to do. The
    freeze is in force when training begins, whatever ``model.train()`` the Trainer calls. It goes
    into the Trainer's checkpoints along with the optimizer's state, so ``resume_from_checkpoint``
    goes on bit for bit, also behind a thaw. At the end all that is frozen is proven to be bitwise
    what it was, and ``trainer.state.log_history`` says so.

    Without plan and schedule, what is frozen already (by hand, by PEFT) is held and proven.

    Args:
        plan: a :class:`frostline.Plan`, the path of a plan file, a mapping as a plan file holds
            it, or a selector of what to freeze. For everything but the head:
            ``fl.Plan.all_but("classifier")``.
        schedule: what :class:`frostline.Freezer` takes as a schedule. What the plan freezes, or
            was frozen before, is out of its reach. A phase that waits for a metric gets
            ``metric_for_best_model`` of each evaluation (the evaluation's loss if there is none).
        replay: compute what is frozen once for each sample: True or ``"memory"``, or a folder in
            which later runs find it.
        guard: watch with :func:`frostline.guard` while training.

    Attributes:
        plan: the plan, or None.
        schedule: the schedule, or None.
        frozen: what is held frozen for good; None before the first training.

    Raises:
        PlanError, SelectorError, ScheduleError: (ValueErrors) an argument can't be read. When the
            Trainer is made, or training begins: it does not suit the model, or nothing is frozen
            at all. On resume: the checkpoint is of a run that froze something else.
        FrozenChangedError: (a RuntimeError) while training or at its end: something moved.

    >>> import frostline as fl
    >>> callback = FrostlineCallback(fl.Plan.all_but("classifier"))
    >>> print(callback.plan)
    freeze: **; train: classifier
    """

    def __init__(
        self,
        plan: PlanLike | None = None,
        schedule: Schedule | str | Mapping[str, Any] | list[Mapping[str, Any]] | None = None,
        replay: bool | Literal["memory"] | str | Path = False,
        guard: bool = True,
    ) -> None:
        if not isinstance(replay, bool | str | Path):
            raise ReplayError(f'replay is True, False, "memory" or a folder, got {replay!r}')
        self.plan = None if plan is None else as_plan(plan)
        self.schedule = None if schedule is None else as_schedule(schedule)
        self.frozen: Frozen | None = None
        self._store = "memory" if isinstance(replay, bool) else replay
        self._replays = bool(replay)
        self._guards = guard
        self._training: Training | None = None
        self._replayed: ReplayedForward | None = None

    @property
    def freezer(self) -> Freezer | None:
        """Carries out the schedule; it has the timeline, also after the training."""
        training = self._training
        return None if training is None or training.phases is None else training.phases.freezer

    @property
    def replayer(self) -> Replayer | None:
        """What replays; its ``stats`` tell what it did. None without replay."""
        return None if self._replayed is None else self._replayed.replayer

    @property
    def declined(self) -> str | None:
        """Why nothing is replayed (any more); None while all is well."""
        return None if self._replayed is None else self._replayed.declined

    # Events of the Trainer.

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Look whether the plan suits the model; freeze it where it is about to be wrapped."""
        # SetFit's model is no module; it is looked at when training begins.
        if not isinstance(model, nn.Module) or self.plan is None:
            return
        decide(self.plan, take_inventory(model))
        # DDP and FSDP note what trains when they wrap. A schedule needs all of it noted.
        if args.world_size > 1 or args.fsdp or args.deepspeed:
            self._freeze(model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Freeze, or go on as the checkpoint says; from here on watch and replay."""
        self._let_go()  # of an earlier training, perhaps cut short by an error
        # SetFit names its model here, of which this trainer trains the body.
        model: nn.Module = getattr(kwargs["model"], "model_body", kwargs["model"])
        self._freeze(model)
        self._training = Training(
            model,
            kwargs["optimizer"],
            base=self.frozen,
            schedule=self.schedule,
            args=args,
            state=state,
            loader=kwargs["train_dataloader"],
        )
        if self._replays:
            self._replay(model, ranks=args.world_size)
        if self._guards:
            self._training.guard()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer has stepped: the schedule may freeze or thaw."""
        if self.freezer is not None:
            self.freezer.step()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An epoch is over, for the schedule and for replay."""
        assert self._training is not None
        if self._training.phases is not None:
            self._training.phases.end_epoch(is_evaluated_next=control.should_evaluate)
        if self._replayed is not None:
            self._replayed.end_epoch(is_whole=self._training.ends_whole_epoch())

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """A metric has come: the schedule may wait for it."""
        if self._training is not None and self._training.is_running:
            self._training.evaluated(metrics or {})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """With the summary of the training, before the best checkpoint may be loaded: prove."""
        if self._training is not None and "train_runtime" in (logs or {}):
            self._training.conclude()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say what was proven, and let go of the loop."""
        assert self._training is not None
        result = self._training.conclude()
        if self.frozen is not None:
            self.frozen.verify()  # again: the best checkpoint may have been loaded since
        if self._replayed is not None:
            self._replayed.remove()
            result |= {"frozen_replayed": self._replayed.replayer.stats.replayed}
            if self.declined is not None:
                _logger.warning("replay was declined: %s", self.declined)
        state.log_history.append({**result, "step": state.global_step})
        _logger.info(
            "%d frozen tensors (%d bytes) are bitwise what they were",
            result["frozen_tensors"],
            result["frozen_bytes"],
        )

    # What they are made of.

    def _freeze(self, model: nn.Module) -> None:
        """Freeze the model for good, once."""
        if self.frozen is not None and self.frozen.model is model and self.frozen.names:
            return
        self.frozen = freeze_base(model, self.plan, has_schedule=self.schedule is not None)

    def _let_go(self) -> None:
        if self._training is not None:
            self._training.close()
            self._training = None
        if self._replayed is not None:
            self._replayed.remove()

    def _replay(self, model: nn.Module, *, ranks: int) -> None:
        """Replay what is frozen; records of an earlier training of the same model serve."""
        if self._replayed is not None and self._replayed.model is model:
            self._replayed.install()
        else:
            self._replayed = ReplayedForward(model, self._store, ranks=ranks)
