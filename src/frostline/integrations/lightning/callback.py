"""The callback: at which moment of Lightning's loop what is done."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from frostline.errors import PlanError, ReplayError, ScheduleError
from frostline.freezer import Freezer
from frostline.freezer.arguments import as_schedule
from frostline.freezing import Frozen, freeze
from frostline.guard import Guard, guard
from frostline.integrations.lightning.base import Callback
from frostline.integrations.lightning.loading import NotedLoader, parts_of, refuse_own_fetching
from frostline.integrations.lightning.optimizers import Optimizers
from frostline.integrations.plans import PlanLike, as_plan, standing_plan
from frostline.integrations.records import record_of, refuse_other_freeze
from frostline.proof import Proof
from frostline.replay import Replayer
from frostline.selection import where

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

_log = logging.getLogger(__name__)


class FrostlineCallback(Callback):
    """Freezes a LightningModule while a ``Trainer`` fits it, and proves that it stayed frozen.

    With a plan the freeze is made before ``configure_optimizers`` is called, with a schedule after
    it, so there every parameter still trains: hand them all to the optimizer, and the callback
    takes out what is frozen and puts in what thaws. Several optimizers, manual optimization,
    gradient accumulation and ``ckpt_path`` need nothing else.

    Args:
        plan: what is frozen throughout: a plan, a plan file, or a selector of what to freeze.
            Without a plan it is what the model has frozen already.
        schedule: what freezes and thaws, besides the plan: a schedule, its name, or its phases.
            One that goes by a metric gets what the run's early stopping or checkpoints monitor.
        replay: compute the frozen part once for each sample: True keeps it in memory, a folder
            also for later runs.
        guard: watch each step, as :func:`frostline.guard` does.

    Attributes:
        frozen: the handle of what the plan froze; None before ``fit``, or without a plan.
        freezer: carries the schedule out; None before ``fit``, or without a schedule.
        replayer: tells what was replayed; None without ``replay``.
        proof: what was compared at the end of the last ``fit``.

    Raises:
        PlanError, ScheduleError, SelectorError: (ValueErrors) plan or schedule can't be read, or,
            in ``fit``, do not suit the model, or the checkpoint is of another plan or schedule.
        FrozenChangedError: (a RuntimeError) in ``fit``: something frozen has moved.
        ReplayError: (a RuntimeError) in ``fit``: the training loader can't be replayed.

    >>> import frostline as fl
    >>> callback = FrostlineCallback(plan=fl.Plan.all_but("head"), replay=True)
    """

    def __init__(
        self,
        plan: PlanLike | None = None,
        schedule: Any = None,
        replay: bool | str | Path = False,
        guard: bool = True,
    ) -> None:
        super().__init__()
        self.frozen: Frozen | None = None
        self.freezer: Freezer | None = None
        self.replayer: Replayer | None = None
        self.proof: Proof | None = None
        self._plan = None if plan is None else as_plan(plan)
        self._schedule = None if schedule is None else as_schedule(schedule)
        self._replay = replay
        self._guards = guard
        self._guard: Guard | None = None
        self._model: nn.Module | None = None
        self._trainer: Trainer | None = None
        self._optimizers: Optimizers | None = None
        self._loader: NotedLoader | None = None
        self._saved: Mapping[str, Any] | None = None
        self._metric: float | None = None
        self._batch = ExitStack()

    # Before the first step.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze by the plan; a schedule goes on where the last ``fit`` of this trainer ended."""
        if stage != "fit":
            return
        goes_on = trainer is self._trainer and pl_module is self._model
        self._saved = self.state_dict() if goes_on and self.freezer is not None else None
        self._let_go()
        if self._model is not pl_module:
            self.replayer = None
        self._trainer, self._model = trainer, pl_module
        self._freeze(pl_module)
        if self._replay is not False:
            refuse_own_fetching(pl_module)
            self._take_over_loader(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The weights are loaded: freeze them anew, and check that they are what was frozen."""
        if trainer.state.fn != "fit":
            return
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None:
            raise PlanError(
                "the checkpoint was saved without FrostlineCallback, so its optimizer holds other"
                " parameters: load its weights alone (load_from_checkpoint) and fit anew"
            )
        self._saved = state
        self._freeze(pl_module)
        refuse_other_freeze(state["freeze"], record_of(self.frozen))
        if (state["freezer"] is None) != (self._schedule is None):
            raise ScheduleError(
                "the checkpoint was saved with a schedule, and FrostlineCallback has none, or the"
                " other way round: pass the schedule of that run"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizers are there, their state is not yet loaded: let them hold what trains."""
        saved = self._saved or {}
        self._optimizers = Optimizers(pl_module, trainer.optimizers, saved.get("owned", ()))
        if self._schedule is not None:
            self._start_freezer(trainer, pl_module, saved.get("freezer"))
        self._metric, self._saved = saved.get("metric"), None
        self._optimizers.sync()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All is restored: begin to watch."""
        if self._loader is not None:
            _refuse_several_loaders(trainer)
        self._catch_up(trainer)
        if self._guards:
            self._guard = guard(pl_module, *trainer.optimizers)
            self._guard.start()

    # While it trains.

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The schedule learns that an epoch has ended; a checkpoint of its end has it before."""
        self._catch_up(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Replay, or record, what the model does with this batch."""
        if self._loader is not None and self.replayer is not None:
            self._batch.enter_context(self.replayer.samples(self._loader.take()))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Gradients are there: a schedule takes its signals."""
        # Without one nobody listens but the guard, which would look at everything twice a step.
        if self.freezer is not None and self._optimizers is not None:
            self._optimizers.note_step()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The schedule may freeze or thaw, if an optimizer has stepped."""
        self._batch.close()
        if self.freezer is not None:
            before = self.freezer.trains
            self.freezer.step(outputs.get("loss") if isinstance(outputs, Mapping) else outputs)
            self._follow(before)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the metric; a checkpoint that is saved now has it."""
        if self.freezer is not None and not trainer.sanity_checking:
            self._metric = _monitored(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the metric, if it is one of training; what was recorded is written to its folder."""
        if self.freezer is not None:
            self._metric = _monitored(trainer)
        if self.replayer is not None:
            self.replayer.passes.end_epoch()

    # Afterwards.

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prove that all that is frozen is bitwise what it was."""
        if self._guard is not None:
            self._guard.stop()
        proofs = [holder.verify() for holder in (self.frozen, self.freezer) if holder is not None]
        self.proof = proofs[-1]
        _log.info("frostline: %s", "; ".join(map(str, proofs)))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop watching, without a last look."""
        if self._guard is not None:
            self._guard.stop(check=False)
        self._give_back(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the trainer as it was; the model stays frozen."""
        if stage == "fit":
            self._give_back(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run checks and goes on from; plain types and tensors."""
        return {
            "freeze": record_of(self.frozen),
            "freezer": None if self.freezer is None else self.freezer.state_dict(),
            "metric": self._metric,
            "owned": [] if self._optimizers is None else list(map(sorted, self._optimizers.owned)),
        }

    # How.

    def _freeze(self, model: nn.Module) -> None:
        if self.frozen is not None:
            self.frozen.undo()
            self.frozen = None
        plan = self._plan
        if plan is None and (self._schedule is None or _holds_frozen(model)):
            plan = standing_plan(model)
        if plan is not None:
            # The gradients that an earlier fit has left are used ones.
            self.frozen = freeze(model, plan, gradients="drop")

    def _let_go(self) -> None:
        if self.freezer is not None:
            self.freezer.close()
            self.freezer = None
        if self._optimizers is not None:
            self._optimizers.close()
            self._optimizers = None

    def _start_freezer(
        self, trainer: Trainer, model: nn.Module, saved: Mapping[str, Any] | None
    ) -> None:
        refuse_forgetful_ddp(trainer)
        assert self._optimizers is not None
        assert self._schedule is not None
        fixed = frozenset() if self.frozen is None else frozenset(self.frozen.names)
        traits = self._schedule.traits
        self.freezer = Freezer(
            model,
            self._optimizers.steering,
            schedule=self._schedule,
            total_steps=_total_steps(trainer) if traits.paced else None,
            fixed=where(lambda name, parameter: name in fixed) if fixed else None,
        )
        if saved is not None:
            self.freezer.load_state_dict(saved)
        if traits.moments == "keep":
            self._optimizers.keep_moments()
        if traits.scales_rates:
            self._optimizers.scale(self.freezer.layout)
            self._optimizers.set_rates(self.freezer.rates)

    def _catch_up(self, trainer: Trainer) -> None:
        if self.freezer is None:
            return
        while self.freezer.position.epoch < trainer.current_epoch:
            before = self.freezer.trains
            self.freezer.epoch(self._metric)
            self._follow(before)

    def _follow(self, before: tuple[str, ...]) -> None:
        assert self.freezer is not None
        assert self._optimizers is not None
        if self.freezer.trains != before:
            self._optimizers.sync()
        self._optimizers.set_rates(self.freezer.rates)

    def _take_over_loader(self, trainer: Trainer, model: nn.Module) -> None:
        """Stand between Lightning's finished training loader and its loop."""
        strategy, original = trainer.strategy, trainer.strategy.process_dataloader
        self._loader = None

        def process_dataloader(loader: object) -> object:
            loader = original(loader)
            if not trainer.training:
                return loader
            self._loader = NotedLoader(loader)
            return self._loader

        # On the instance, and gone again at the end; Lightning has no hook for it.
        vars(strategy)["process_dataloader"] = process_dataloader
        if self.replayer is None:
            store = "memory" if self._replay is True else self._replay
            assert store is not False
            self.replayer = Replayer(parts_of(model), store=store)

    def _give_back(self, trainer: Trainer) -> None:
        self._batch.close()
        vars(trainer.strategy).pop("process_dataloader", None)


def _holds_frozen(model: nn.Module) -> bool:
    return not all(parameter.requires_grad for parameter in model.parameters())


def _monitored(trainer: Trainer) -> float | None:
    """The metric that early stopping, or else a checkpoint callback, goes by."""
    callbacks = [*getattr(trainer, "early_stopping_callbacks", ()), *trainer.checkpoint_callbacks]
    names = [name for callback in callbacks if (name := getattr(callback, "monitor", None))]
    found = [trainer.callback_metrics[name] for name in names if name in trainer.callback_metrics]
    return float(found[0]) if found else None


def _total_steps(trainer: Trainer) -> int | None:
    steps = trainer.estimated_stepping_batches
    return None if steps == float("inf") or steps < 1 else int(steps)


def _refuse_several_loaders(trainer: Trainer) -> None:
    if len(tree_leaves(trainer.train_dataloader)) > 1:
        raise ReplayError(
            "replay serves one training loader, and there are several: leave replay out, or give"
            " one loader of a data set that has all samples"
        )


def refuse_forgetful_ddp(trainer: Trainer) -> None:
    """Raise ScheduleError if the model is wrapped in a DDP that will not see what freezes later.

    It takes note of what trains when it wraps; only with ``find_unused_parameters`` it looks again.
    """
    wrapped = trainer.strategy.model
    if isinstance(wrapped, DistributedDataParallel) and not wrapped.find_unused_parameters:
        raise ScheduleError(
            "under DDP a schedule needs Trainer(strategy='ddp_find_unused_parameters_true'): what"
            " freezes after the model was wrapped is waited for otherwise"
        )
