"""Saving what was trained of a model, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from torch import nn

from frostline.checkpoint.delta import Delta, DeltaTensor, delta_metadata, read_delta
from frostline.checkpoint.sharded import by_leader, refuse_flattened
from frostline.checkpoint.tensors import ModelTensor, gathered, model_tensors
from frostline.checkpoint.writing import Outgoing, write_safetensors
from frostline.errors import CheckpointError, SelectorError
from frostline.files import replace_atomically
from frostline.freezing.decide import decide
from frostline.freezing.plan import Plan
from frostline.naming import Inventory, take_inventory, tensor_bytes
from frostline.proof import fingerprint
from frostline.proof.fingerprint import content_pieces, has_plain_content
from frostline.selection import SelectorLike, as_selector, glob
from frostline.shards import team_of


def save_trained(
    model: nn.Module,
    path: str | Path,
    *,
    plan: Plan | None = None,
    include: SelectorLike | None = None,
    base: Mapping[str, str] | None = None,
) -> Delta:
    """Write only what was trained to a ``.safetensors`` file, tied to the base it was trained on.

    Saved are the parameters that train now, those that Frostline made trainable before (by a
    thaw, by a schedule), and the buffers that no freeze holds. Of all others the file has the
    fingerprint, so that :func:`load_trained` and ``frostline merge`` refuse another base. The old
    file at ``path`` is there until the new one is whole.

    A model that is sharded (``fully_shard``, tensor parallel) is saved by all ranks together: each
    tensor is gathered, the first rank writes, and the file is the one that a single process would
    have written. That rank needs memory for what is saved, the others for the largest tensor.

    Args:
        model: the model, wrapped or not, on any device.
        path: the file to write.
        plan: what was to be frozen and trained, for ``frostline verify``; if left out, what is
            saved was to be trained.
        include: parameters to save besides. What you froze by hand after training it is one.
        base: what :func:`frostline.checkpoint.fingerprints` gave before training. Then what
            differs from it is saved, whatever trains: exact after a resume, too.

    Returns:
        What was written: ``.names``, ``.nbytes``, ``.base``.

    Raises:
        CheckpointError: (a ValueError) nothing was trained, or a tensor can't be saved (meta,
            quantised, flattened by FSDP1).
        SelectorError: (a ValueError) ``include`` or the plan matches nothing.
        OutputError: (an OSError) the file can't be written.

    >>> from tempfile import TemporaryDirectory
    >>> import frostline as fl
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> frozen = fl.freeze(model, "0")
    >>> with TemporaryDirectory() as folder:
    ...     saved = fl.save_trained(model, Path(folder, "tuned.safetensors"))
    >>> saved.names, saved.nbytes
    (('1.weight', '1.bias'), 40)
    """
    path = Path(path)
    refuse_flattened(model)
    inventory = take_inventory(model)
    included = as_selector(include).find(inventory) if include is not None else {}
    to_freeze = _frozen_by(plan, inventory) if plan is not None else None
    found = model_tensors(inventory)
    if base is None and not any(t.may_have_moved or t.group in included for t in found):
        raise CheckpointError(
            f"nothing of {type(model).__name__} was trained: all of it is frozen. Say what to"
            " save: include='head'"
        )
    team = team_of(tensor.tensor for tensor in found)
    tensors, outgoing = [], []
    for tensor in found:
        one = gathered(tensor)
        content = fingerprint(one.tensor)
        moved = tensor.may_have_moved if base is None else base.get(tensor.name) != content
        stored = moved or tensor.group in included
        if stored:
            _refuse_unsavable(one)
            if team is None or team.leads:
                outgoing.append(_outgoing(one if one is tensor else _off_device(one)))
        frozen = (
            not stored if to_freeze is None or tensor.group is None else (tensor.group in to_freeze)
        )
        tensors.append(_entry(tensor, content, stored=stored, frozen=frozen))
    metadata = delta_metadata(_written(plan, tensors), tensors)

    def write() -> Delta:
        replace_atomically(path, lambda file: write_safetensors(file, outgoing, metadata))
        return read_delta(path)

    return by_leader(team, write)


def _frozen_by(plan: Plan, inventory: Inventory) -> Collection[int]:
    return {index for index, action in decide(plan, inventory).items() if action == "freeze"}


def _entry(tensor: ModelTensor, content: str, *, stored: bool, frozen: bool) -> DeltaTensor:
    return DeltaTensor(
        names=tensor.names,
        kind=tensor.kind,
        shape=tensor.shape,
        dtype=tensor.dtype,
        fingerprint=content,
        stored=stored,
        frozen=frozen,
    )


def _outgoing(tensor: ModelTensor) -> Outgoing:
    return Outgoing(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        nbytes=tensor_bytes(tensor.tensor),
        pieces=lambda: content_pieces(tensor.tensor),
    )


def _off_device(tensor: ModelTensor) -> ModelTensor:
    """A gathered tensor waits for the file to be written where there is room for it."""
    return replace(tensor, tensor=tensor.tensor.cpu())


def _refuse_unsavable(tensor: ModelTensor) -> None:
    if not has_plain_content(tensor.tensor):
        raise CheckpointError(
            f"{tensor.name} can't be saved: it is a {type(tensor.tensor).__name__} without plain"
            " content (sparse, quantised). Make it dense first, or freeze it"
        )


def _written(plan: Plan | None, tensors: list[DeltaTensor]) -> str:
    """The plan as YAML; one by name where there is none, or one of functions and objects."""
    if plan is not None:
        try:
            return plan.to_yaml()
        except SelectorError:
            pass
    frozen = {tensor.name: tensor.frozen for tensor in tensors if tensor.kind == "parameter"}
    if not any(frozen.values()):
        return Plan.training("**").to_yaml()
    trained = [glob(pattern) for pattern in _trained_parts(frozen)]
    return (Plan.all_but(trained) if trained else Plan.freezing("**")).to_yaml()


def _trained_parts(frozen: Mapping[str, bool]) -> list[str]:
    """Globs of the largest modules of which all trains, and names of single tensors.

    >>> _trained_parts({"a.x": True, "a.y": False, "b.c.x": False, "b.c.y": False})
    ['a.y', 'b.**']
    """
    parts_of = {name: list(accumulate(name.split("."), "{}.{}".format)) for name in frozen}
    mixed = {part for name, held in frozen.items() if held for part in parts_of[name]}
    found: dict[str, None] = {}  # a set that keeps the order
    for name, held in frozen.items():
        if not held:
            part = next(part for part in parts_of[name] if part not in mixed)
            found[name if part == name else f"{part}.**"] = None
    return list(found)
