"""States of random generators, read often while a pass is traced."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frostline.proof.surroundings import generator_state

_OF_TORCH = "torch.nn.modules."


def may_draw_in_python(module: nn.Module) -> bool:
    """Whether a module's own ``forward`` may draw from generators of Python or NumPy.

    Torch's own layers draw from torch's generators alone.

    >>> may_draw_in_python(nn.Dropout())
    False
    """
    kind = type(module)
    is_own = kind.__module__.startswith(_OF_TORCH)
    return not (is_own and kind.forward.__module__.startswith(_OF_TORCH))


def python_randomness(own: list[Any]) -> tuple[Any, ...]:
    """The state of Python's and NumPy's generators, and of some others.

    >>> before = python_randomness([])
    >>> before == python_randomness([])
    True
    """
    numpy_state = np.random.get_state(legacy=False)
    where = numpy_state["state"]
    states = pickle.dumps([generator_state(generator) for generator in own]) if own else b""
    return random.getstate(), where["key"].tobytes(), where["pos"], numpy_state["gauss"], states


def torch_randomness(tensors: list[Tensor], given: list[Any]) -> list[Tensor]:
    """The state of the generators that an operation on these arguments would draw from.

    Args:
        tensors: the tensors among the operation's arguments.
        given: all of its arguments.

    >>> len(torch_randomness([], []))
    1
    """
    devices = {t.device for t in tensors if t.device.type == "cuda"}
    own = [held.get_state() for held in given if isinstance(held, torch.Generator)]
    cuda = [torch.cuda.get_rng_state(device) for device in devices]
    return [torch.get_rng_state(), *cuda, *own]
