"""One step on an example batch, without traces: what moves, what is reached, what is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from frostline.check.batch import call, default_loss, own_copy
from frostline.check.blockers import early_blockers
from frostline.check.recorder import Call, Recording, recording
from frostline.naming import Alias
from frostline.nests import tensors_in
from frostline.proof.traceless import no_traces, same_bits

Parts = tuple[tuple[str, nn.Module, bool], ...]
"""(name, module, frozen) of every module to watch."""

Loss = Callable[[Any], Tensor]
"""From the model's output to the number that training minimises."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What early trainable tensors cost.

    Attributes:
        blockers: their names.
        behind: number of frozen tensors that run between them and what else trains.
        bytes_with: bytes of activations that a step keeps for backward as things are.
        bytes_without: the same with the blockers frozen too.
    """

    blockers: tuple[str, ...]
    behind: int
    bytes_with: int
    bytes_without: int


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a step on the example batch has shown.

    Attributes:
        failure: why the step could not be done, or None.
        unusable: names of the example's tensors made under inference mode.
        inferring: the module whose forward computes under inference mode what backward needs.
        unreached: trainable parameters that no gradient reaches.
        moved: frozen parameters, and buffers of frozen modules, that the forward pass wrote.
        unsteady: frozen modules whose output differs between two runs on the same input.
        unsteady_input: the first frozen module fed with something that differs between two runs
            though nothing trainable lies before it and no dropout module is on; or None.
        input_grad: whether a tensor of the example requires grad.
        grafted: the first frozen module whose output requires grad on its own; or None.
        zeroed_padding: frozen transformer encoders that returned zeros at padded positions.
        wiped: trainable parameters with hooks that zero the gradient, with the share of zeros.
        reentrant: whether torch warned that reentrant checkpointing gets no gradient.
        kept: what early trainable tensors cost; None if there are none.
    """

    failure: str | None = None
    unusable: tuple[str, ...] = ()
    inferring: str | None = None
    unreached: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    unsteady: tuple[str, ...] = ()
    unsteady_input: str | None = None
    input_grad: bool = False
    grafted: str | None = None
    zeroed_padding: tuple[str, ...] = ()
    wiped: Mapping[str, float]
    reentrant: bool = False
    kept: Kept | None = None


def run_probe(
    model: nn.Module,
    example: Any,
    loss: Loss | None,
    *,
    parts: Parts,
    parameters: Mapping[str, nn.Parameter],
    resting: Sequence[Alias],
) -> Probe:
    """Run the model on the example: forward and backward, forward again, leaving no traces.

    Args:
        model: the model, in the modes in which it stands.
        example: the batch.
        loss: function of the output; None for the output's own ``loss``, or a mean square.
        parts: the modules to watch.
        parameters: the parameters by name, in definition order.
        resting: what should hold still: frozen parameters, buffers of frozen modules.
    """
    unusable = _inference_tensors(example)
    if unusable or any(t.is_inference() for t in chain(model.parameters(), model.buffers())):
        return Probe(unusable=unusable, wiped={})  # the rule for those says more than the crash
    # What a wrapper adds (communication between ranks, compilation) is no part of the question.
    inner = _unwrapped(model)
    watched = tuple(part for part in parts if part[1] in set(inner.modules()))
    first = Recording()
    with no_traces(model), torch.inference_mode(False), torch.enable_grad():
        try:
            return _step(inner, example, loss, watched, parameters, resting, first)
        except Exception as error:  # the model's own code: anything may come out of it
            if first.inference is not None and "nference tensor" in str(error):
                return Probe(inferring=first.inference, wiped={})
            message = " ".join(str(error).split())
            return Probe(failure=f"{type(error).__name__}: {message}"[:300], wiped={})


def _step(
    model: nn.Module,
    example: Any,
    loss: Loss | None,
    parts: Parts,
    parameters: Mapping[str, nn.Parameter],
    resting: Sequence[Alias],
    first: Recording,
) -> Probe:
    before = [alias.tensor.detach().clone() for alias in resting]
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with recording(parts, first):
            output = call(model, own_copy(example))
            if trainable and any(tensor.is_inference() for tensor in tensors_in(output)):
                return Probe(inferring=first.inference, wiped={})
            total = (loss or default_loss)(output)
            del output
        kept_bytes = first.kept_bytes(model)
        first.kept.clear()
        moved = [a.name for a, was in zip(resting, before, strict=True) if _put_back(a, was)]
        gradients = _gradients(total, list(trainable.values()))
        del total
        with recording(parts) as second:
            call(model, own_copy(example))
        second.kept.clear()
    unsteady, unsteady_input = _differences(first.calls, second.calls)
    return Probe(
        unreached=tuple(n for n, g in zip(trainable, gradients, strict=True) if g is None),
        moved=tuple(moved),
        unsteady=unsteady,
        unsteady_input=unsteady_input,
        input_grad=any(tensor.requires_grad for tensor in tensors_in(example)),
        grafted=_first(first.calls, lambda c: c.frozen and c.grafted),
        zeroed_padding=tuple(dict.fromkeys(c.name for c in first.calls if c.frozen and c.zeroed)),
        wiped=_wiped(trainable),
        reentrant=any("None of the inputs have requires_grad" in str(w.message) for w in caught),
        kept=_cost(model, example, loss, parameters, first, kept_bytes),
    )


def _put_back(alias: Alias, content: Tensor) -> bool:
    """Undo what the forward pass wrote, so that the next one starts alike; whether it had."""
    key = alias.name.rpartition(".")[2]
    owner = alias.owner
    held: dict[str, Any] = owner._parameters if key in owner._parameters else owner._buffers
    now = held.get(key)
    if now is not None and same_bits(now, content):
        return False
    alias.tensor.data.copy_(content)
    held[key] = alias.tensor
    return True


def _gradients(total: Tensor, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    if not total.requires_grad or not parameters:
        return [None] * len(parameters)
    if not _checkpoints_reentrantly(total):
        return list(torch.autograd.grad(total.sum(), parameters, allow_unused=True))
    # Such a segment runs a backward of its own, which only writes into .grad.
    for parameter in parameters:
        parameter.grad = None
    total.sum().backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in parameters]


def _checkpoints_reentrantly(total: Tensor) -> bool:
    """Whether a segment checkpointed with use_reentrant=True lies in the graph."""
    waiting, seen = [total.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if node.name().startswith("CheckpointFunction"):
                return True
            waiting.extend(before for before, _ in node.next_functions)
    return False


def _differences(first: list[Call], second: list[Call]) -> tuple[tuple[str, ...], str | None]:
    """The innermost frozen modules that are unsteady, and the first that is fed unsteadily."""
    unsteady: list[str] = []
    fed: str | None = None
    explained = False  # by a dropout that is meant to be on, before the frozen module
    for one, other in zip(first, second, strict=False):
        if one.name != other.name:
            break
        explained |= one.random
        if one.frozen and one.given == other.given and one.gave != other.gave:
            unsteady.append(one.name)
        elif one.frozen and one.fresh and one.given != other.given and not (unsteady or explained):
            fed = fed or one.name
    names = list(dict.fromkeys(unsteady))
    innermost = tuple(n for n in names if not any(m.startswith(f"{n}.") for m in names))
    return innermost, fed


def _wiped(trainable: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """For each parameter whose hooks zero gradients, which share of a gradient of ones."""
    shares: dict[str, float] = {}
    for name, parameter in trainable.items():
        gradient = torch.ones_like(parameter)
        for hook in dict(parameter._backward_hooks or {}).values():
            if type(hook).__module__.startswith("frostline."):
                continue
            result = hook(gradient)
            gradient = gradient if result is None else result
        zeros = float((gradient == 0).sum()) / max(1, gradient.numel())
        if zeros:
            shares[name] = zeros
    return shares


def _cost(
    model: nn.Module,
    example: Any,
    loss: Loss | None,
    parameters: Mapping[str, nn.Parameter],
    seen: Recording,
    bytes_with: int,
) -> Kept | None:
    """What the early trainable tensors cost, in the order in which the model really ran."""
    ranks = {name: rank for rank, name in reversed(list(enumerate(seen.order)))}
    order = sorted(parameters, key=lambda name: _rank(name.rpartition(".")[0], ranks))
    found = early_blockers([(name, parameters[name].requires_grad) for name in order])
    if not found.blockers:
        return None
    for name in found.blockers:
        parameters[name].requires_grad_(False)
    with recording(()) as without:
        total = (loss or default_loss)(call(model, own_copy(example)))
    bytes_without = without.kept_bytes(model)
    without.kept.clear()
    del total
    for name in found.blockers:
        parameters[name].requires_grad_(True)
    return Kept(
        blockers=found.blockers,
        behind=found.behind,
        bytes_with=bytes_with,
        bytes_without=bytes_without,
    )


def _rank(owner: str, ranks: Mapping[str, int]) -> int:
    """When a module first ran; one that is never called, by whatever holds it."""
    while owner not in ranks and owner:
        owner = owner.rpartition(".")[0]
    return ranks.get(owner, 0)


def _first(calls: list[Call], fits: Callable[[Call], bool]) -> str | None:
    return next((one.name for one in calls if fits(one)), None)


def _inference_tensors(example: Any) -> tuple[str, ...]:
    if isinstance(example, Mapping):
        named = [(f"example[{key!r}]", value) for key, value in example.items()]
    elif isinstance(example, tuple | list):
        named = [(f"example[{index}]", value) for index, value in enumerate(example)]
    else:
        named = [("example", example)]
    return tuple(n for n, v in named if any(t.is_inference() for t in tensors_in(v)))


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        wrapper = type(model).__name__
        if wrapper == "OptimizedModule":
            model = model._orig_mod  # type: ignore[assignment]
        elif wrapper in ("DataParallel", "DistributedDataParallel"):
            model = model.module  # type: ignore[assignment]
        else:
            return model
