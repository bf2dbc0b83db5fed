"""Bytes that a training step holds: gradients, optimizer state, activations kept for backward.

All three count storages, each once and whole. A view keeps all of its storage alive, so the
storage is what the memory is spent on: counting what each view shows would count the three
slices of one attention projection as three tensors, and a single row of a large activation as a
row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.naming import tensor_bytes
from frostline.nests import inner_tensors, tensors_in


@dataclass(frozen=True, kw_only=True)
class SavedTensors:
    """What autograd keeps alive between forward and backward.

    Attributes:
        activation_bytes: memory that exists only because backward will need it, and the batch's
            inputs and targets where backward needs them.
        parameter_bytes: memory of the model's own parameters and buffers that backward refers
            to. It is there anyway, so it costs nothing more.
    """

    activation_bytes: int
    parameter_bytes: int


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of the gradients that the model's parameters hold now.

    A gradient counts wherever there is one, also on a frozen parameter: it takes memory until it
    is set to None.

    >>> import torch
    >>> layer = nn.Linear(4, 2)
    >>> layer(torch.ones(1, 4)).sum().backward()
    >>> gradient_bytes(layer)
    40
    """
    return _total(p.grad for p in model.parameters() if p.grad is not None)


def optimizer_state_bytes(optimizer: Optimizer) -> int:
    """Bytes of the tensors in ``optimizer.state``, however deep in lists and mappings.

    Step counters that are tensors count too (4 bytes a parameter for Adam); Python numbers do
    not. Most optimizers allocate their state in the first step, so it is 0 before.

    >>> import torch
    >>> layer = nn.Linear(4, 2)
    >>> adam = torch.optim.Adam(layer.parameters())
    >>> layer(torch.ones(1, 4)).sum().backward()
    >>> adam.step()
    >>> optimizer_state_bytes(adam)  # two moments of 40 bytes, two counters of 4
    88
    """
    return _total(tensors_in(list(optimizer.state.values())))


def saved_activations(model: nn.Module, run: Callable[[], Tensor]) -> SavedTensors:
    """Run one forward pass and measure what it leaves for backward.

    ``run`` is a real forward with all its effects: BatchNorm statistics and the random state
    move. Counted is what is still alive when it returns. What an autograd function stores other
    than by ``save_for_backward`` can't be seen.

    Args:
        model: the module whose parameters and buffers are told apart from activations.
        run: computes the loss and returns it; the graph lives as long as the loss does.

    >>> import torch
    >>> layer = nn.Linear(4, 2)
    >>> saved_activations(layer, lambda: layer(torch.ones(3, 4)).sum())  # the input, 3 x 4 floats
    SavedTensors(activation_bytes=48, parameter_bytes=0)
    """
    with recording(model) as count:
        loss = run()
        saved = count()
        del loss  # not before: with it goes the graph, and all that is counted
    return saved


@contextmanager
def recording(model: nn.Module) -> Iterator[Callable[[], SavedTensors]]:
    """Watch what autograd saves; the function that is yielded counts what is alive when called."""
    alive: WeakSet[_Saved] = WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        alive.add(saved)
        return saved

    def count() -> SavedTensors:
        own = dict(_storages(chain(model.parameters(), model.buffers())))
        kept = dict(_storages(saved.tensor for saved in list(alive)))
        return SavedTensors(
            activation_bytes=sum(size for key, size in kept.items() if key not in own),
            parameter_bytes=sum(size for key, size in kept.items() if key in own),
        )

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        yield count


class _Saved:
    """Stands in the graph for a saved tensor, and dies with the graph.

    A weak reference to the tensor itself would not do: what a hook is given is a new object each
    time, and a list of tensors would keep alive what the forward has already let go.
    """

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        # A saved output comes with its grad_fn, which holds this object: a cycle through C++
        # that no garbage collector sees. Autograd puts the grad_fn back when it unpacks.
        self.tensor = tensor.detach()


def _total(tensors: Iterable[Tensor]) -> int:
    """Bytes of all storages that the tensors lie on, each once."""
    return sum(dict(_storages(tensors)).values())


def _storages(tensors: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
    """(identity, bytes) of each storage; a storage comes as often as it is referred to."""
    for tensor in chain.from_iterable(map(_plain_parts, tensors)):
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # opaque layouts (oneDNN) have none to show
            yield id(tensor), tensor_bytes(tensor)
        else:
            # The address of the C++ object: data_ptr is 0 for every meta and fake tensor.
            yield storage._cdata, storage.nbytes()


def _plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with a storage that a composite one is made of; a plain one itself."""
    inner = [part for _, part in inner_tensors(tensor)]
    if not inner:
        yield tensor
    for part in inner:
        yield from _plain_parts(part)
