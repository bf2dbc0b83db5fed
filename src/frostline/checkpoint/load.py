"""Putting a delta onto its base, in place; if anything is wrong nothing has changed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from frostline.checkpoint.content import ContentReader
from frostline.checkpoint.delta import Delta, DeltaTensor, damaged, read_delta, stored_tensors
from frostline.checkpoint.tensors import ModelTensor, digest, model_tensors
from frostline.errors import CheckpointError, TransitionError
from frostline.freezing.flags import is_held_frozen
from frostline.naming import take_inventory
from frostline.proof import fingerprint
from frostline.proof.fingerprint import has_plain_content
from frostline.units import format_number_of


def load_trained(model: nn.Module, path: str | Path) -> Delta:
    """Put what :func:`save_trained` wrote into a model that holds its base.

    The tensors are filled in place: parameters stay the same objects, so an optimizer keeps
    working and ties hold. Nothing is unpickled. Wrappers (DDP, ``torch.compile``) don't matter.

    Args:
        model: the model, its base weights loaded.
        path: the delta.

    Returns:
        What was loaded: ``.names``, ``.plan``, ``.base``.

    Raises:
        CheckpointError: (a ValueError) the file is cut, altered, no delta, or of an unknown
            version; it belongs to another architecture or to other base weights (the first
            tensors that differ are named).
        TransitionError: (a RuntimeError) it would change what is frozen: load first, freeze then.
        In each case nothing has changed.

    >>> from tempfile import TemporaryDirectory
    >>> import frostline as fl
    >>> base, again = nn.Linear(8, 4), nn.Linear(4, 2)
    >>> tuned = nn.Sequential(base, nn.Linear(4, 2))
    >>> frozen = fl.freeze(tuned, "0")
    >>> with TemporaryDirectory() as folder:
    ...     _ = fl.save_trained(tuned, Path(folder, "tuned.safetensors"))
    ...     fl.load_trained(nn.Sequential(base, again), Path(folder, "tuned.safetensors")).names
    ('1.weight', '1.bias')
    >>> torch.equal(again.weight, tuned[1].weight)
    True
    """
    delta = read_delta(path)
    places = {found.name: found for found in model_tensors(take_inventory(model))}
    _refuse_other_architecture(delta, places)
    contents = _read(delta)
    _refuse_other_base(delta, places)
    moves = [
        (places[name], content)
        for name, content in contents.items()
        if fingerprint(content) != digest(places[name])
    ]
    for place, _ in moves:
        _refuse_unwritable(place)
    with torch.no_grad():
        for place, content in moves:
            place.tensor.copy_(content)
    return delta


def _read(delta: Delta) -> dict[str, Tensor]:
    """All that the file holds, whole and right, before anything is touched."""
    stored = stored_tensors(delta)
    contents: dict[str, Tensor] = {}
    with ContentReader() as reader:
        for entry in delta.tensors:
            if entry.stored:
                content = reader.tensor(stored[entry.name])
                if fingerprint(content) != entry.fingerprint:
                    raise damaged(delta.path, entry.name)
                contents[entry.name] = content
    return contents


def _refuse_other_architecture(delta: Delta, places: dict[str, ModelTensor]) -> None:
    known = {entry.name for entry in delta.tensors}
    found = [
        difference
        for entry in delta.tensors
        if (difference := _difference(entry, places.get(entry.name))) is not None
    ]
    found += [f"{name}: not in the delta's model" for name in places if name not in known]
    if found:
        raise CheckpointError(
            _listed(
                f"{delta.path} belongs to a model of another architecture,"
                f" {format_number_of(len(found), 'difference')}:",
                found,
                "Build the model as it was when the delta was saved",
            )
        )


def _difference(entry: DeltaTensor, place: ModelTensor | None) -> str | None:
    if place is None:
        return f"{entry.name}: not in this model"
    if place.kind != entry.kind:
        return f"{entry.name}: saved as a {entry.kind}, is a {place.kind}"
    if (place.shape, place.dtype) != (entry.shape, entry.dtype):
        return (
            f"{entry.name}: saved as {entry.dtype} {list(entry.shape)}, is {place.dtype}"
            f" {list(place.shape)}"
        )
    if set(place.names) != set(entry.names):
        return f"{entry.name}: saved as {_tied(entry.names)}, is {_tied(place.names)}"
    return None


def _tied(names: tuple[str, ...]) -> str:
    return f"tied with {', '.join(names[1:])}" if len(names) > 1 else "a tensor of its own"


def _refuse_other_base(delta: Delta, places: dict[str, ModelTensor]) -> None:
    rest = [entry for entry in delta.tensors if not entry.stored]
    other = [entry.name for entry in rest if digest(places[entry.name]) != entry.fingerprint]
    if other:
        raise CheckpointError(
            _listed(
                f"{delta.path} belongs to another base: {len(other)} of"
                f" {format_number_of(len(rest), 'tensor')} that it does not hold differ from those"
                " it was trained on:",
                other,
                "Load the base's weights into the model first; what no checkpoint holds has to be"
                " in the delta: fl.save_trained(…, include=…)",
            )
        )


def _refuse_unwritable(place: ModelTensor) -> None:
    tensor = place.tensor
    if isinstance(tensor, nn.Parameter) and is_held_frozen(tensor):
        raise TransitionError(
            f"{place.name} is frozen, and the delta would change it: load first, then freeze"
        )
    repeats = (
        any(
            step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
        )
        if has_plain_content(tensor)
        else True
    )
    if repeats:
        raise CheckpointError(
            f"{place.name} can't be filled in place: it is sharded, quantised or expanded. Load"
            " the delta before the model is prepared"
        )


def _listed(head: str, lines: list[str], mend: str) -> str:
    shown = [f"  {line}" for line in lines[:5]]
    more = [f"  and {len(lines) - 5:,} more"] if len(lines) > 5 else []
    return "\n".join([head, *shown, *more, f"{mend}. Nothing was changed."])
