"""What a training step will hold and compute, without doing it.

The step is run on fake tensors, which have a shape, a dtype and a device but no content: the
same operators, the same autograd, no memory and no arithmetic. They are chosen over the meta
device because an operator may save other tensors there than on the device that is asked about
(eval-mode BatchNorm and attention do on the CPU).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
)
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from frostline.errors import FrostlineError, MeasureError
from frostline.measure.memory import gradient_bytes, optimizer_state_bytes, recording
from frostline.nests import tensors_in

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One training step, foretold.

    Attributes:
        gradient_bytes: gradients after backward.
        optimizer_state_bytes: what the optimizer keeps after its first step.
        activation_bytes: what autograd keeps between forward and backward, as
            :class:`frostline.measure.SavedTensors` counts it.
        forward_flops: floating-point operations of the forward pass. Counted are matrix
            products, convolutions and attention, a multiply and an add as two.
        backward_flops: the same of the backward pass; it shrinks as more is frozen.
    """

    gradient_bytes: int
    optimizer_state_bytes: int
    activation_bytes: int
    forward_flops: int
    backward_flops: int


def predict(
    model: nn.Module,
    batch: Batch,
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    optimizer: Callable[[nn.Module], Optimizer],
) -> Prediction:
    """Foretell the memory and the arithmetic of one training step.

    Nothing is computed or allocated, so it works for a model that does not fit, and nothing of
    the model, the batch or the random state changes. The numbers are those that the step itself
    gives, but for work space that a kernel keeps to itself (oneDNN's and cuDNN's LSTM).

    Args:
        model: the model as it will be trained: what is frozen now is taken as frozen.
        batch: tensors, or anything that holds tensors (a tuple, a mapping, an object).
        loss: given a copy of the model and of the batch, runs the forward pass and returns a
            scalar. It must use no other tensors.
        optimizer: given the copy, makes the optimizer.

    Raises:
        MeasureError: (a RuntimeError) the step depends on the content of a tensor
            (``if x.sum() > 0``), or something in it can't run without content.

    >>> layer = nn.Linear(1000, 1000)
    >>> ahead = predict(
    ...     layer,
    ...     torch.empty(32, 1000),
    ...     lambda model, x: model(x).sum(),
    ...     optimizer=lambda model: torch.optim.AdamW(model.parameters()),
    ... )
    >>> ahead.gradient_bytes, ahead.optimizer_state_bytes, ahead.activation_bytes
    (4004000, 8008008, 128000)
    >>> ahead.forward_flops
    64000000
    """
    with without_content(model, batch, loss) as (model, batch, loss):
        return take_step(model, batch, loss, optimizer)


@contextmanager
def without_content(
    model: nn.Module, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor]
) -> Iterator[tuple[nn.Module, Batch, Callable[[nn.Module, Batch], Tensor]]]:
    """Copies of the three on fake tensors, and the mode in which they can be run."""
    mode = FakeTensorMode()
    with _explained():
        with FakeCopyMode(mode):
            # Copied together: a loss that holds the model, or its tensors, then holds the copy's.
            # Gradients are not copied with a parameter.
            copied = copy.deepcopy((model, batch, loss))
        with mode:
            given = list(tensors_in(copied[1]))
            if given and not any(tensor.is_meta for tensor in given):
                _off_meta(copied[0])
            yield copied


def _off_meta(model: nn.Module) -> None:
    """Take a model on the meta device as one on the CPU, where its batch is.

    All on meta can be run as well, but attention keeps all its scores there.
    """
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None or not tensor.is_meta:
                    continue
                made = torch.empty_like(tensor, device="cpu")
                if isinstance(tensor, nn.Parameter):
                    made = nn.Parameter(made, tensor.requires_grad)
                held[name] = moved.setdefault(id(tensor), made)  # type: ignore[assignment]


def take_step(
    model: nn.Module,
    batch: Batch,
    loss: Callable[[nn.Module, Batch], Tensor],
    optimizer: Callable[[nn.Module], Optimizer],
) -> Prediction:
    """Take one step on what :func:`without_content` gave, and count."""
    with flop_counter() as counter:
        with recording(model) as count:
            value = loss(model, batch)
            saved = count()
        forward_flops = counter.get_total_flops()
        value.backward()  # type: ignore[no-untyped-call]
        backward_flops = counter.get_total_flops() - forward_flops
    made = optimizer(model)
    with _AnyNumber():  # type: ignore[no-untyped-call]
        made.step()
    return Prediction(
        gradient_bytes=gradient_bytes(model),
        optimizer_state_bytes=optimizer_state_bytes(made),
        activation_bytes=saved.activation_bytes,
        forward_flops=forward_flops,
        backward_flops=backward_flops,
    )


class _AnyNumber(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives some number to an optimizer that reads one out of a fake tensor.

    torch.optim reads its step counters to correct a bias; what it allocates does not depend on
    them. One half is neither 0 nor 1, which some of them subtract and divide by.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.5 if args[0].is_floating_point() else 0
        return func(*args, **(kwargs or {}))


def flop_counter() -> FlopCounterMode:
    """Torch's counter of operations, and the CPU's fused attention, which that passes over."""
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
        },
    )


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    """Two products, for shapes (batch, heads, length, width): the scores, and what they weigh."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


def _attention_backward_flops(
    _: object,
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *__: object,
    **___: object,
) -> int:
    """Five products: the scores again, then the gradients of values, scores, queries and keys."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (3 * width + 2 * value[3])


@contextmanager
def _explained() -> Iterator[None]:
    """Turn whatever a step on fake tensors raises into a MeasureError that says what to do."""
    log = logging.getLogger(FakeTensorMode.__module__)
    was_disabled, log.disabled = log.disabled, True  # it would print what is raised here anyway
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise MeasureError(
            f"the step can't be predicted: it depends on the content of a tensor ({error}); "
            "measure it instead: frostline.measure.saved_activations"
        ) from error
    except FrostlineError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise MeasureError(
            f"the step can't be predicted: without computing, it fails with: {reason}"
        ) from error
    finally:
        log.disabled = was_disabled
