"""The freezer: a schedule carried out on a model while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

from torch import nn
from torch.optim import Optimizer

from frostline.errors import FrostlineError, ModelTypeError
from frostline.freezer.arguments import (
    as_schedule,
    base_rate,
    checked_decision,
    checked_metric,
    inner_optimizer,
    length_note,
    moments_for,
    present_rate,
    units_that_train,
)
from frostline.freezer.events import Event, Kind, Row, event_of, timeline
from frostline.freezer.facts import position_facts, resume_facts, run_facts, transition_facts
from frostline.freezer.holder import Holder
from frostline.freezer.phases import recompile_note
from frostline.freezer.position import Position
from frostline.freezer.ranks import Distributed, Ranks
from frostline.freezer.rates import RateFactors
from frostline.freezer.resume import identity, refuse_misfit
from frostline.freezer.scene import Scene, set_scene
from frostline.freezer.signals import SignalBoard
from frostline.freezer.watch import StepWatch
from frostline.optim import load_optimizer_state, optimizer_state
from frostline.proof import Proof
from frostline.schedules import Blocks, Decision, Progress, Schedule, State, layout_of
from frostline.schedules.base import Moment
from frostline.schedules.checks import whole
from frostline.selection import SelectorLike


class Freezer:
    """Carries out a schedule: freezes, thaws, keeps the optimizer in step, and says what it did.

    The first decision is carried out at once. After that the loop calls :meth:`step` after each
    ``optimizer.step()`` and :meth:`epoch` at each epoch's end, and nothing else changes in it. A
    scheduler goes on as if there were no freezer: factors that a schedule sets multiply its rates
    while the optimizer steps.

    Args:
        model: the model, wrapped or not. All of it belongs to the schedule, also what was frozen
            by hand before, except what is ``fixed``.
        optimizer: any optimizer that trains the model. :func:`frostline.optimizer` gives one that
            knows in which group a thawed parameter belongs.
        scheduler: its learning-rate scheduler, to be checked; the loop steps it as before.
        schedule: a schedule, its name (``"autofreeze"``), or a mapping with its options.
        distributed: ``ddp``: a bare model is put under DistributedDataParallel, and
            ``freezer.model`` is the wrapper. ``fsdp2``: the model is sharded already. None: as the
            model shows; a wrapper around it is found, and follows every transition.
        total_steps: optimizer steps of the whole run; until it is known, 10 epochs are assumed.
        steps_per_epoch: optimizer steps of an epoch. If it is given, epochs end by themselves, and
            :meth:`epoch` may bring the metric then, and at no other time. If not, 100 are assumed
            until the first call of :meth:`epoch` tells.
        blocks: the blocks, from the input up, where :func:`frostline.blocks` does not find them.
        fixed: what the schedule leaves as it is, such as the base weights below an adapter.
        prove: before a thaw, compare what thaws with what it was when it froze.

    Attributes:
        optimizer: the optimizer.
        scheduler: the scheduler, or None.
        schedule: the schedule.
        layout: the units that the schedule decides about.
        position: steps and epochs so far.

    Raises:
        ScheduleError: (a ValueError) the schedule does not suit the model, or can't be read.
        TransitionError: (a RuntimeError) the ranks of a process group are not about to do the same.
        FrostlineError: the first transition is not possible. In each case nothing has changed.

    >>> import frostline as fl, torch
    >>> from torch import nn
    >>> model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 2))
    >>> optimizer = fl.optimizer(torch.optim.SGD, model, lr=0.1)
    >>> freezer = Freezer(model, optimizer, schedule="gradual-unfreeze")
    >>> for epoch in range(2):
    ...     for _ in range(5):
    ...         optimizer.zero_grad()
    ...         freezer.model(torch.ones(2, 4)).sum().backward()
    ...         optimizer.step()
    ...         freezer.step()
    ...     freezer.epoch()
    >>> [(row.step, row.frozen) for row in freezer.timeline()]
    [(0, ('0', '1', '2')), (5, ('0', '1')), (10, ('0',))]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: object = None,
        schedule: Schedule | str | Mapping[str, Any] | None = None,
        distributed: Distributed | None = None,
        *,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        blocks: Blocks | str | Sequence[str] | None = None,
        fixed: SelectorLike | None = None,
        prove: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ModelTypeError(
                f"expected a model (torch.nn.Module), got {type(model).__name__}; it comes first"
            )
        for option, value in (("total_steps", total_steps), ("steps_per_epoch", steps_per_epoch)):
            if value is not None:
                whole("freezer", option, value)
        self.optimizer = inner_optimizer(optimizer)
        self.scheduler = scheduler
        self.schedule = as_schedule(schedule)
        traits = self.schedule.traits
        self._ranks = Ranks(distributed, model)
        self._module = self._ranks.module
        self.layout = layout_of(self._module, grain=traits.grain, named=blocks, fixed=fixed)
        self.position = Position(total_given=total_steps, per_epoch_given=steps_per_epoch)
        self._base_rate = base_rate(self.optimizer)
        self._prove = prove
        self._events: list[Event] = []
        self._note(length_note(traits, total_steps=total_steps, steps_per_epoch=steps_per_epoch))
        self._holder = Holder(
            self._module,
            self.layout,
            self.optimizer,
            scheduler,
            moments=moments_for(self.optimizer, traits),
        )
        self._scene: Scene | None = None
        self._rates = RateFactors(self.optimizer)
        self._signals = SignalBoard(self.optimizer, self._ranks.same_reading)
        self._watch = StepWatch(self._module, self.optimizer)
        try:
            if traits.scales_rates:
                self._rates.install()
            self._ranks.agree(
                "the start of the schedule",
                lambda: run_facts(self.schedule, self.layout, self.position),
            )
            beginning = self._progress("start", self.position)
            self._note(recompile_note(self.model, self.schedule, beginning))
            self._state: State = self.schedule.start(beginning)
            self._decide("start", self.position)
        except BaseException:
            self.close()
            raise

    def step(self, loss: SupportsFloat | None = None) -> None:
        """Say that the optimizer has stepped; the schedule may freeze or thaw now.

        Where the optimizer has not stepped since the last call (between micro-batches, or when a
        gradient scaler left a step out) nothing happens, and nothing is counted. Gradients that
        were used are dropped if something freezes or thaws.

        Args:
            loss: the step's loss, a tensor or a number; it is not read unless a schedule asks.

        Raises:
            TransitionError: (a RuntimeError) a transition is due and gradients are pending.
            FrozenChangedError: (a RuntimeError) what is about to thaw had moved while frozen.
            ScheduleError: (a ValueError) the schedule can't go on. Nothing has changed.
        """
        if not self._watch.take_step():
            return
        self._rates.settle()
        try:
            if self.position.epoch_is_full:  # its metric was waited for, and did not come
                self._decide("epoch", self.position.after_epoch())
            self._decide("step", self.position.after_step(), loss=loss)
        except BaseException:
            self._watch.give_back_step()
            raise
        if self.position.epoch_is_full and not self._metric_wanted():
            self._decide("epoch", self.position.after_epoch())

    def epoch(self, metric: float | None = None) -> None:
        """Say that an epoch has ended; the schedule may freeze or thaw now.

        Args:
            metric: the validation metric, if there is one.

        Raises:
            ScheduleError: (a ValueError) the schedule goes by the metric, and it is not finite,
                or did not come; or the epoch has another length than was given. Nothing has
                changed.
            TransitionError, FrozenChangedError: as from :meth:`step`.
        """
        wanted = self._metric_wanted()
        value = self._ranks.same(
            "the end of an epoch",
            position_facts(self.position),
            metric if metric is None else float(metric),
            lambda value: checked_metric(value, wanted=wanted, schedule=self.schedule),
        )
        self._decide("epoch", self.position.told_of_epoch(), metric=value)

    @property
    def model(self) -> nn.Module:
        """What the loop calls: the model as it was given, or the wrapper that spreads it."""
        return self._ranks.model

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened, why, with which numbers, and at which step."""
        return tuple(self._events)

    @property
    def trains(self) -> tuple[str, ...]:
        """Names of the units that train now, from the input up."""
        return tuple(u.name for u in self.layout.units if u.name in self._training)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the units that are frozen now, from the input up."""
        return tuple(u.name for u in self.layout.units if u.name not in self._training)

    @property
    def rates(self) -> Mapping[str, float]:
        """Unit → factor on its learning rate; units that are not in it have 1."""
        return dict(self._rates.factors)

    def timeline(self) -> tuple[Row, ...]:
        """What was frozen from when on, for a table or a plot; one row for each transition."""
        return timeline(self._events, self.layout)

    def verify(self) -> Proof:
        """Prove that all that is frozen now is bitwise what it was when it froze.

        Raises:
            FrozenChangedError: (a RuntimeError) names what moved.
        """
        return self._holder.verify()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the run needs to go on bit for bit, but the weights and the scheduler.

        The optimizer's state is in it, by name. Tensors, numbers, strings, lists and dicts alone,
        so ``torch.load`` reads it with ``weights_only=True``. The tensors are the live ones, as in
        ``optimizer.state_dict()``: save it at once, or deepcopy it.
        """
        return {
            **identity(self.schedule, self.layout),
            "position": self.position.to_plain(),
            "state": dict(self._state),
            "trains": sorted(self._training),
            "frozen": self._holder.fingerprints(),
            "rates": dict(self._rates.factors),
            "base_rate": self._base_rate,
            "signals": self._signals.state(),
            "events": [event.to_plain() for event in self._events],
            "optimizer": optimizer_state(self.optimizer, self._module),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Load the model's weights first, build the optimizer and its scheduler as in the run that
        stopped, and load the scheduler's own state as well.

        Raises:
            ScheduleError: (a ValueError) the state is of another schedule, or of a model with
                other parts, or what was frozen has other content here.
            OptimizerError: (a ValueError) the optimizer is another one. Nothing has changed.
        """
        self._ranks.agree(
            "a resume",
            lambda: resume_facts(state),
            lambda: refuse_misfit(state, self.schedule, self.layout, self._module),
        )
        before = self.state_dict()
        try:
            self._go_to(state)
        except FrostlineError:
            self._go_to(before)
            raise

    def close(self) -> None:
        """Stop: remove all hooks, and put flags and modes back as they were before the freezer."""
        self._watch.remove()
        self._rates.remove()
        self._signals.remove()
        with self._ranks.transition():
            self._holder.release()
        self._ranks.close()

    @property
    def _training(self) -> frozenset[str]:
        now = self._holder.trains
        return self.layout.names if now is None else now

    def _metric_wanted(self) -> bool:
        return "metric" in self.schedule.needs(self._progress("epoch", self.position), self._state)

    def _progress(self, at: Moment, position: Position, metric: float | None = None) -> Progress:
        return Progress(
            at=at,
            layout=self.layout,
            trains=self._training,
            step=position.step,
            epoch=position.epoch,
            total_steps=position.total_steps,
            steps_per_epoch=position.steps_per_epoch,
            metric=metric,
            rate=present_rate(self.optimizer, self._base_rate),
        )

    def _decide(
        self,
        at: Moment,
        position: Position,
        *,
        metric: float | None = None,
        loss: SupportsFloat | None = None,
    ) -> None:
        """Ask, check, carry out; counters and state move on only if all of it went well."""
        progress = self._progress(at, position, metric)
        decision = self.schedule.decide(progress, self._signals.readings(loss=loss), self._state)
        checked_decision(decision, progress, self.schedule)
        train = decision.train
        if self._holder.trains is None and train is None:  # a first phase that comes later
            train = units_that_train(self.layout)
        if train is not None and train != self._holder.trains:
            self._transition(train, decision, progress)
        self.position, self._state = position, decision.state
        if decision.rates is not None:
            self._rates.factors = dict(decision.rates)
        for name in self._signals.take_silent():
            self._note(
                f"the signal {name} was asked for and there was none: no gradient, or no forward"
                " that could be seen (hooks do not run inside what torch.compile has compiled)"
            )
        self._signals.restart(decision.restart)
        if self._scene is not None and self._scene.is_stale():
            self._look_around()
        self._prepare()

    def _transition(self, train: frozenset[str], decision: Decision, progress: Progress) -> None:
        self._ranks.look()
        self._ranks.agree(
            f"the transition at step {progress.step}",
            lambda: transition_facts(self._module, train, decision, progress),
            lambda: self._refuse(train),
        )
        first, before = self._holder.trains is None, self._training
        self._ranks.align()
        with self._ranks.transition():
            self._holder.move(train)
        self._look_around()
        kind: Kind | None = "start" if first else None
        self._events.append(event_of(decision, progress, before=before, train=train, kind=kind))

    def _refuse(self, train: frozenset[str]) -> None:
        """Raise if this is no moment for a transition, or what thaws was moved while frozen."""
        self._watch.refuse_pending()
        if self._prove:
            self._holder.prove(train)

    def _note(self, why: str | None) -> None:
        """Once for each thing to say."""
        if why is not None and all(event.why != why for event in self._events):
            at = self.position
            self._events.append(Event(step=at.step, epoch=at.epoch, kind="note", why=why))

    def _look_around(self) -> None:
        """After a transition: which buffers rest, and whose parameter is whose."""
        self._ranks.rest()
        self._scene = set_scene(self._module, self.layout, self._training)
        self._rates.units = {
            id(p): unit for unit, named in self._scene.units.items() for p in named.values()
        }

    def _prepare(self) -> None:
        """Before the step that comes: the signals that the schedule wants of it."""
        assert self._scene is not None
        wanted = self.schedule.needs(self._progress("step", self.position), self._state)
        self._signals.arm(wanted, self._scene)

    def _go_to(self, state: Mapping[str, Any]) -> None:
        with self._ranks.transition():
            self._holder.release()
            self._holder.move(frozenset(state["trains"]))
        load_optimizer_state(self.optimizer, self._module, state["optimizer"])
        self._holder.mark_kept()
        self._rates.factors = dict(state["rates"])
        self._base_rate = state["base_rate"]
        self._state = state["state"]
        self._events = [Event.from_plain(plain) for plain in state["events"]]
        self.position = self.position.resumed(state["position"])
        self._signals.load(state["signals"])
        self._look_around()
        self._prepare()
