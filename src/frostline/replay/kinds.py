"""Kinds of pass: what is known of each, and the cut that is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from frostline.replay.code_marks import code_mark
from frostline.replay.content import FORMAT, digest_of, kernel_settings, machine
from frostline.replay.cut import Cut, find_cut
from frostline.replay.deep import lasting_mark
from frostline.replay.graph import Graph, Place
from frostline.replay.liveness import Exclusions
from frostline.replay.plan import NotPerSample, Plan
from frostline.replay.regroup import Recorded
from frostline.replay.runner import TopLevel
from frostline.replay.sharded_blocks import blocks_of
from frostline.replay.slots import OF_EVERY_MODULE, OF_SHARDING
from frostline.replay.store import Store
from frostline.replay.weights import Weights
from frostline.shards import Place as ParameterPlace
from frostline.shards import sharded_parameters

SEAL = digest_of("seal")
ROUNDS = 32
"""Cuts that are tried for one kind of pass before it is given up."""


@dataclass(kw_only=True, eq=False)
class Kind:
    """All that is known of one kind of top-level call: of one form, in one state of the model.

    Attributes:
        graph: what was traced.
        exclusions: what passes after the traced one have shown.
        plan: how it is replayed; None if it is not.
        weights: the tensors on which the recorded values depend.
        why: why it is not replayed.
        recent: recorded passes of which no mixture has been tried.
        is_of_earlier_run: whether the store has records that an earlier run has proven.
        can_be_mixed: whether mixtures of batches can be computed.
        known: samples that were recorded.
        groupings: batches that were recorded.
        has_output_proof: whether a replayed pass gave the output of a computed one.
        paths: positions of tensor arguments → paths of the loader's fields that they are.
        has_paths: whether a pass has shown them.
        other_inputs: paths of fields in the place of which a pass also got something else.
        remembered: samples → their digests at the planned calls.
        passes: passes made so far.
        replayed: passes replayed so far.
        strays: replays that had to be given up halfway.
    """

    graph: Graph
    exclusions: Exclusions
    plan: Plan | None = None
    weights: Weights | None = None
    why: str | None = None
    recent: list[Recorded] = field(default_factory=list)
    can_be_mixed: bool = True
    is_of_earlier_run: bool = False
    known: set[int] = field(default_factory=set)
    groupings: set[tuple[int, ...]] = field(default_factory=set)
    has_output_proof: bool = False
    paths: dict[int, str] = field(default_factory=dict)
    has_paths: bool = False
    other_inputs: set[str] = field(default_factory=set)
    remembered: dict[int, list[bytes]] = field(default_factory=dict)
    passes: int = 0
    replayed: int = 0
    strays: int = 0

    @property
    def refused(self) -> Mapping[Place, str]:
        """Frozen calls that are made every time → why."""
        return find_cut(self.graph, self.exclusions).refused

    def remember(self, ids: tuple[int, ...], keys: Mapping[int, list[bytes]]) -> None:
        """Note under which digests a pass's samples are kept, to find them without their inputs."""
        if self.plan is not None and len(keys) == self.plan.columns:
            columns = [keys[order] for order in range(len(keys))]
            for place, name in enumerate(ids):
                if name in self.remembered:
                    continue
                self.remembered[name] = [column[place] for column in columns]

    def needed_paths(self) -> frozenset[str]:
        """Fields of the loader that have to be there in a replay."""
        if self.plan is None:
            return frozenset(self.paths.values())
        needed = self.plan.cut.needed_inputs
        used = {path for position, path in self.paths.items() if needed[position]}
        return frozenset(used | self.other_inputs)

    def note_paths(self, paths: dict[int, str]) -> None:
        """A pass got these fields, by position; what it got otherwise is no field."""
        if not self.has_paths:
            self.paths, self.has_paths = paths, True
        elif paths != self.paths:
            self.other_inputs |= {*paths.values(), *self.paths.values()}

    def forget_records(self) -> None:
        """What was recorded is of another cut."""
        self.known.clear()
        self.recent.clear()
        self.groupings.clear()
        self.remembered.clear()

    def rewritten(self, *, quick: bool) -> str | None:
        """The name of a tensor whose content is not what the recorded values were computed with.

        Args:
            quick: whether content is looked at only where a tensor's version has moved.
        """
        if self.weights is None:
            return None
        return self.weights.changed() if quick else self.weights.check_content()

    def give_up(self, why: str | None) -> None:
        """Replay passes of this kind no more."""
        self.plan, self.why = None, why


def trace_kind(call: TopLevel, *, rounding: bool, keep_as: torch.dtype | None = None) -> Kind:
    """Look at a kind of pass for the first time, for trial; nothing is cut yet."""
    # A rank that finds that a part was too small can't compute anew without the others.
    keeps_whole = bool(blocks_of(call.model))
    exclusions = Exclusions(accepts_rounding=rounding, keep_as=keep_as, keeps_whole=keeps_whole)
    try:
        graph = call.traced()
        for traced in graph.calls:
            traced.layouts = [layout.narrowed(keep_as) for layout in traced.layouts]
        return Kind(graph=graph, exclusions=exclusions)
    except Exception as error:
        # The pass itself comes next and raises it, if it is the user's.
        why = f"the pass can't be traced: {type(error).__name__}: {error}"
        return Kind(graph=Graph(), exclusions=exclusions, why=why)


def plan_kind(kind: Kind, call: TopLevel, samples: int, store: Store) -> None:
    """Cut a kind of pass, for the first time or after exclusions were added."""
    kind.plan = None
    for _ in range(ROUNDS if kind.graph.calls else 0):
        cut = find_cut(kind.graph, kind.exclusions)
        if not cut.keeps_something:
            kind.give_up(_nothing_to_replay(cut))
            return
        kind.weights = Weights(_tensors_of(call.model, cut))
        key = digest_of(
            FORMAT,
            machine(),
            kernel_settings(),
            sorted(kind.weights.digests().items()),
            [_configuration(planned.call.module) for planned in cut.planned],
            [_own_configuration(module) for module in _around(kind.graph, cut)],
            call.name,
        )
        try:
            plan = Plan.of(
                kind.graph, cut, samples=samples, key=key, layouts=kind.exclusions.layouts
            )
        except NotPerSample as error:
            kind.exclusions.split[error.index] = "its output depends on the batch as a whole"
            continue
        for station in plan.stations:
            station.open(store, key)
        if plan.seal(store).find([SEAL])[0] >= 0:
            plan.proofs, kind.is_of_earlier_run = 1, True
        kind.plan = plan
        return
    kind.why = kind.why or "no cut was found that holds"


def key_of(call: TopLevel, state: int) -> Any:
    """What tells kinds of pass apart: form of the inputs, state of the model, settings of torch.

    Args:
        call: the top-level call.
        state: a number that stands for the state of the model.
    """
    nest = call.given
    forms = tuple((t.shape, t.dtype, t.device, t.requires_grad) for t in nest.tensors)
    grad = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return call.name, nest.form, forms, state, kernel_settings(), grad


def _nothing_to_replay(cut: Cut) -> str:
    reasons = [f"{place}: {why}" for place, why in list(cut.refused.items())[:4]]
    reasons += [cut.stopped_by] if cut.stopped_by and not reasons else []
    if reasons:
        return f"nothing can be replayed ({'; '.join(reasons)})"
    return (
        "no frozen module is called before what trains, so there is nothing to replay: what is"
        " frozen takes inputs that depend on trainable tensors"
    )


def _tensors_of(model: nn.Module, cut: Cut) -> dict[str, Tensor]:
    """The model's tensors on which the values of planned calls depend."""
    found: dict[str, Tensor] = {}
    shards = sharded_parameters(model)
    lasting = {
        id(module._parameters[place.key]): shards[place]
        for module in model.modules()
        for place in (ParameterPlace(id(module), key) for key in module._parameters)
        if place in shards
    }
    for planned in cut.planned:
        name = planned.call.place.name
        module = planned.call.module
        for key, tensor in (*module.named_parameters(), *module.named_buffers()):
            found[f"{name}.{key}" if name else key] = tensor
        for below, inner in module.named_modules():
            for key, value in vars(inner).items():
                if isinstance(value, Tensor):
                    found[".".join(filter(None, (name, below, key)))] = value
    everything = dict(model.named_parameters()) | dict(model.named_buffers())
    found.update({name: everything[name] for name in cut.glue_tensors if name in everything})
    # What is gathered from shards for the time being is gone when the pass is over.
    return {name: lasting.get(id(tensor), tensor) for name, tensor in found.items()}


def _around(graph: Graph, cut: Cut) -> list[nn.Module]:
    """Modules in whose own code planned calls are made."""
    found: dict[int, nn.Module] = {}
    for planned in cut.planned:
        for index in graph.around(planned.index):
            if index != planned.index:
                found[id(graph.calls[index].module)] = graph.calls[index].module
    return list(found.values())


def _configuration(module: nn.Module) -> Any:
    """Classes and settings of a module and of those below, the same in every process."""
    return [_own_configuration(below) for below in module.modules()]


def _own_configuration(module: nn.Module) -> Any:
    own = {
        key: value
        for key, value in vars(module).items()
        if key not in OF_EVERY_MODULE and not key.startswith(("_frostline", OF_SHARDING))
    }
    kind = type(module)
    code = code_mark(module)
    return kind.__module__, kind.__qualname__, code, module.training, lasting_mark(own)
