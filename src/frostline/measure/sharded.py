"""What a step costs one of many ranks, where parameters are sharded over all of them.

The counts are those of torch's ``fully_shard`` (FSDP2) as it works by default: every block is a
group of its own, and what is left is the root's. A group's parameters lie on the ranks in equal
shares, are gathered before its forward and dropped after it; the root keeps its own. In the
backward pass a group is gathered again if gradients flow through it, and the gradients of what
trains are reduced and scattered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from frostline.errors import MeasureError
from frostline.measure.predict import predict, take_step, without_content
from frostline.nests import tensors_in

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class ShardedStep:
    """One training step on one rank, foretold.

    Attributes:
        parameter_bytes: this rank's share of the parameters, as they are kept between steps.
        gradient_bytes: its share of the gradients.
        optimizer_state_bytes: its share of what the optimizer keeps.
        activation_bytes: what autograd keeps on this rank between forward and backward.
        gathered_peak_bytes: the largest sum of gathered parameters that are whole at a time: the
            root's, and those of a block and of the one that is fetched ahead of it.
        gathered_bytes: size of all that is gathered in a step. A ring moves ``(ranks - 1) / ranks``
            of it into every rank.
        reduced_bytes: size of all gradients that are reduced and scattered in a step.
        handed_on_bytes: size of what leaves the last skipped block: what replay has to keep of
            one rank's batch, and to read in each step. 0 where nothing is skipped.
    """

    parameter_bytes: int
    gradient_bytes: int
    optimizer_state_bytes: int
    activation_bytes: int
    gathered_peak_bytes: int
    gathered_bytes: int
    reduced_bytes: int
    handed_on_bytes: int

    @property
    def held_bytes(self) -> int:
        """Everything that one rank holds at its fullest moment, but a kernel's work space."""
        return (
            self.parameter_bytes
            + self.gradient_bytes
            + self.optimizer_state_bytes
            + self.activation_bytes
            + self.gathered_peak_bytes
        )


@dataclass(frozen=True, kw_only=True)
class _Output:
    """What a block returned: whether gradients flow through it, and its size."""

    is_live: bool = False
    nbytes: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """Parameters that are gathered together, and what their block returned."""

    parameters: tuple[nn.Parameter, ...]
    output: _Output

    def nbytes(self, ranks: int, dtype: torch.dtype | None, *, trainable: bool = False) -> int:
        """Bytes of the whole, each parameter's first dimension filled up to equal shares."""
        return sum(
            _filled(p, ranks) * (p.element_size() if dtype is None else dtype.itemsize)
            for p in self.parameters
            if p.requires_grad or not trainable
        )


def sharded_step(
    model: nn.Module,
    batch: Batch,
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    optimizer: Callable[[nn.Module], Optimizer],
    blocks: Sequence[str],
    ranks: int,
    compute: torch.dtype | None = None,
    reduce: torch.dtype | None = None,
    skip: int = 0,
) -> ShardedStep:
    """Foretell memory and traffic of one rank under ``fully_shard``, without a process group.

    Nothing is computed or allocated, so one laptop can ask about 64 accelerators: build the model
    under ``torch.device("meta")``.

    Args:
        model: the model as it will be trained: what is frozen now is taken as frozen.
        batch: one rank's batch; see :func:`frostline.measure.predict`.
        loss: given copies of model and batch, runs the forward pass and returns a scalar.
        optimizer: given a copy, makes the optimizer.
        blocks: names of the modules that are sharded one by one, from the input up.
        ranks: how many processes share the parameters.
        compute: dtype in which parameters are gathered and used; None for their own.
        reduce: dtype in which gradients are reduced; None for the one they are computed in.
        skip: how many blocks, counted from the input, are replayed: not gathered, not computed.

    Raises:
        MeasureError: (a RuntimeError) the step can't be predicted, there is no such block, or a
            block that is to be skipped trains or has something below it that does.

    >>> model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(4)))
    >>> for block in model[:3]:
    ...     _ = block.requires_grad_(False)
    >>> step = sharded_step(
    ...     model, torch.empty(8, 64), lambda model, x: model(x).sum(),
    ...     optimizer=lambda model: torch.optim.SGD(model[3].parameters()),
    ...     blocks=["0", "1", "2", "3"], ranks=4, skip=3,
    ... )
    >>> step.parameter_bytes, step.gathered_bytes, step.reduced_bytes, step.handed_on_bytes
    (16384, 32768, 16384, 2048)
    """
    if ranks < 1:
        raise MeasureError(f"ranks is at least 1, got {ranks}")
    outputs: dict[str, _Output] = {}
    with without_content(model, batch, loss) as (fake, fake_batch, fake_loss):
        inner = {name: _block(fake, name) for name in blocks}
        if compute is not None:
            _gathered_as(fake, compute)
            for module in (fake, *inner.values()):
                module.register_forward_pre_hook(_casting(compute), with_kwargs=True)
        for name, block in inner.items():
            block.register_forward_hook(_noting(outputs, name))
        computed = take_step(fake, fake_batch, fake_loss, optimizer)
    kept = computed if compute is None else predict(model, batch, loss, optimizer=optimizer)
    groups, root = _groups(model, {name: outputs.get(name, _Output()) for name in blocks})
    if any(group.output.is_live for group in groups[:skip]):
        raise MeasureError(f"the first {skip} blocks can't all be skipped: something trains there")
    used = groups[skip:]
    forward = [group.nbytes(ranks, compute) for group in (*used, root)]
    trained = sum(group.nbytes(ranks, None, trainable=True) for group in (*used, root))
    return ShardedStep(
        parameter_bytes=sum(g.nbytes(ranks, None) for g in (*groups, root)) // ranks,
        gradient_bytes=trained // ranks,
        optimizer_state_bytes=_share(kept.optimizer_state_bytes, ranks),
        activation_bytes=computed.activation_bytes,
        gathered_peak_bytes=_peak(forward),
        gathered_bytes=sum(forward) + _gathered_again(used, ranks, compute),
        reduced_bytes=sum(
            group.nbytes(ranks, reduce or compute, trainable=True) for group in (*used, root)
        ),
        handed_on_bytes=groups[skip - 1].output.nbytes if skip else 0,
    )


def _gathered_again(used: Sequence[_Group], ranks: int, compute: torch.dtype | None) -> int:
    """Bytes gathered in the backward pass: live groups, and the one below that is fetched ahead."""
    lowest = next((at for at, group in enumerate(used) if group.output.is_live), len(used))
    return sum(group.nbytes(ranks, compute) for group in used[max(0, lowest - 1) :])


def _peak(gathered: Sequence[int]) -> int:
    """The root's, and the two neighbours that take most."""
    *blocks, root = gathered
    pairs = [sum(blocks[at : at + 2]) for at in range(max(1, len(blocks) - 1))]
    return root + max(pairs)


def _block(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise MeasureError(f"the model has no block {name!r}: {error}") from error


def _groups(model: nn.Module, outputs: Mapping[str, _Output]) -> tuple[list[_Group], _Group]:
    """The blocks' groups, and the root's: what is in no block."""
    seen: set[int] = set()
    groups = [
        _Group(parameters=tuple(_new(_block(model, name), seen)), output=output)
        for name, output in outputs.items()
    ]
    root = _Group(parameters=tuple(_new(model, seen)), output=_Output(is_live=True))
    return groups, root


def _noting(outputs: dict[str, _Output], name: str) -> Callable[..., None]:
    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = list(tensors_in(output))
        outputs[name] = _Output(
            is_live=any(tensor.requires_grad for tensor in tensors),
            nbytes=sum(tensor.nbytes for tensor in tensors),
        )

    return note


def _casting(dtype: torch.dtype) -> Callable[..., Any]:
    """A hook that does to a module's inputs what ``fully_shard`` does."""

    def cast(value: Any) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if is_float else value

    return lambda module, args, kwargs: tree_map(cast, (args, kwargs))


def _new(module: nn.Module, seen: set[int]) -> Iterator[nn.Parameter]:
    for parameter in module.parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield parameter


def _gathered_as(model: nn.Module, dtype: torch.dtype) -> None:
    """Put parameters of another dtype in the place of the model's own; buffers keep theirs."""
    cast: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                made = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)
                module._parameters[name] = cast.setdefault(id(parameter), made)


def _filled(parameter: nn.Parameter, ranks: int) -> int:
    """Elements once the first dimension is a multiple of the number of ranks."""
    if parameter.ndim == 0:
        return ranks
    rows = math.ceil(parameter.shape[0] / ranks) * ranks
    return rows * math.prod(parameter.shape[1:])


def _share(nbytes: int, ranks: int) -> int:
    return math.ceil(nbytes / ranks)
