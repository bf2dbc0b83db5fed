"""Putting a delta onto its base, in place; if anything is wrong nothing has changed."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from frostline.checkpoint.content import ContentReader
from frostline.checkpoint.delta import Delta, DeltaTensor, damaged, fold, read_delta, stored_tensors
from frostline.checkpoint.sharded import by_all, refuse_flattened
from frostline.checkpoint.tensors import ModelTensor, digest, model_tensors
from frostline.errors import CheckpointError, TransitionError
from frostline.freezing.flags import is_held_frozen
from frostline.naming import take_inventory
from frostline.proof import fingerprint
from frostline.proof.fingerprint import has_plain_content
from frostline.shards import Team, fill, local_part, team_of
from frostline.units import format_number_of


def load_trained(model: nn.Module, path: str | Path) -> Delta:
    """Put what :func:`save_trained` wrote into a model that holds its base.

    The tensors are filled in place: parameters stay the same objects, so an optimizer keeps
    working and ties hold. Nothing is unpickled. Wrappers (DDP, ``torch.compile``) don't matter.
    Into a sharded model (``fully_shard``, tensor parallel) all ranks load together: each reads the
    file and keeps its part, and if it fails on one rank it fails on all.

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
    >>> bool((again.weight == tuned[1].weight).all())
    True
    """
    refuse_flattened(model)
    places = {found.name: found for found in model_tensors(take_inventory(model))}
    team = team_of(place.tensor for place in places.values())
    delta, contents = by_all(team, lambda: _read(path, places))
    _refuse_other_files(delta, team)
    for place, content in by_all(team, lambda: _moves(delta, contents, places)):
        fill(place.tensor, content)
    return delta


def _read(path: str | Path, places: dict[str, ModelTensor]) -> tuple[Delta, dict[str, Tensor]]:
    delta = read_delta(path)
    _refuse_other_architecture(delta, places)
    return delta, _contents(delta)


def _refuse_other_files(delta: Delta, team: Team | None) -> None:
    mine = fold((tensor.name, tensor.fingerprint) for tensor in delta.tensors)
    if team is not None and len(set(team.share(mine))) > 1:
        raise CheckpointError(
            f"{delta.path} is not the same file on all ranks: copy one of them to every machine"
        )


def _moves(
    delta: Delta, contents: dict[str, Tensor], places: dict[str, ModelTensor]
) -> list[tuple[ModelTensor, Tensor]]:
    """What has to be filled with what, all of it looked at before any is refused."""
    present = {name: digest(place) for name, place in places.items()}
    _refuse_other_base(delta, present)
    moves = [
        (places[name], content)
        for name, content in contents.items()
        if fingerprint(content) != present[name]
    ]
    for place, _ in moves:
        _refuse_unwritable(place)
    return moves


def _contents(delta: Delta) -> dict[str, Tensor]:
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


def _refuse_other_base(delta: Delta, present: dict[str, str]) -> None:
    rest = [entry for entry in delta.tensors if not entry.stored]
    other = [entry.name for entry in rest if present[entry.name] != entry.fingerprint]
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
    tensor = local_part(place.tensor)
    if isinstance(place.tensor, nn.Parameter) and is_held_frozen(place.tensor):
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
            f"{place.name} can't be filled in place: it is quantised or expanded. Load"
            " the delta before the model is prepared"
        )


def _listed(head: str, lines: list[str], mend: str) -> str:
    shown = [f"  {line}" for line in lines[:5]]
    more = [f"  and {len(lines) - 5:,} more"] if len(lines) > 5 else []
    return "\n".join([head, *shown, *more, f"{mend}. Nothing was changed."])
