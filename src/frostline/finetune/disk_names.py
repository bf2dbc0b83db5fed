"""A transformers model under the names that its tensors have on disk.

From version 5 on ``from_pretrained`` renames the tensors of many architectures when it loads, and
``save_pretrained`` gives them their old names back. A delta is merged with files, so it has theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True, eq=False)
class OnDisk:
    """A model whose tensors are another's, under the names of its checkpoint.

    Attributes:
        model: holds the same tensors; it can't be called.
        names: name in the model → name on disk.
    """

    model: nn.Module
    names: Mapping[str, str]

    @property
    def is_renamed(self) -> bool:
        """Whether a name differs."""
        return any(name != other for name, other in self.names.items())


def on_disk(model: nn.Module) -> OnDisk | None:
    """The model under the names on disk; None if not only names differ there.

    Args:
        model: of transformers; another one keeps its names.

    >>> found = on_disk(nn.Linear(2, 2))
    >>> found.names, found.is_renamed
    ({'weight': 'weight', 'bias': 'bias'}, False)
    """
    state = dict(model.state_dict(keep_vars=True))
    names = _names_on_disk(model)
    if names.keys() != state.keys():
        return None
    tree = nn.Module()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in state.items():
        place, _, last = names[name].rpartition(".")
        holder = _module_at(tree, place)
        if name in parameters:
            holder.register_parameter(last, parameters[name])
        else:
            holder.register_buffer(last, tensor)
    return OnDisk(model=tree, names=names)


def _names_on_disk(model: nn.Module) -> dict[str, str]:
    """Name → name on disk, of the tensors that are the same there but for their names."""
    state: dict[str, Any] = model.state_dict()  # a new object for each name, also of tied ones
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before version 5 nothing is renamed
        return {name: name for name in state}
    if not hasattr(model, "save_pretrained"):
        return {name: name for name in state}
    known = {id(tensor): name for name, tensor in state.items()}
    pretrained: Any = model
    reverted = revert_weight_conversion(pretrained, dict(state))
    return {known[id(t)]: other for other, t in reverted.items() if id(t) in known}


def _module_at(tree: nn.Module, place: str) -> nn.Module:
    for part in place.split(".") if place else ():
        if part not in tree._modules:
            tree.add_module(part, nn.Module())
        tree = tree.get_submodule(part)
    return tree
