"""Freeze part of a tensor: the old rows of a grown embedding, some channels, some heads."""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch import nn

from frostline.errors import FrozenChangedError, PlanError, SelectorError, TransitionError
from frostline.freezing.boundary import PendingGradients, settle_gradients
from frostline.freezing.row_hold import KeptRows, RowHold, row_holds
from frostline.freezing.row_index import Rows, row_index, say_rows
from frostline.freezing.special import refuse_lazy, refuse_renormalised
from frostline.naming import Alias, TensorGroup, take_inventory, tensor_bytes
from frostline.proof import Change, Proof
from frostline.proof.changes import describe
from frostline.proof.fingerprint import has_plain_content
from frostline.selection import SelectorLike, as_selector, select_in


def freeze_rows(
    model: nn.Module,
    what: SelectorLike,
    rows: Rows,
    *,
    dim: int = 0,
    gradients: PendingGradients = "refuse",
) -> FrozenRows:
    """Hold some rows of a tensor, bit for bit, while the others train.

    The rows are put back after every step of any torch optimizer, whatever weight decay,
    momentum or orthogonalisation did to them, and their gradient is zero. It costs one copy of
    the rows in memory, and writing them twice a step. The hold survives deepcopy, pickle,
    ``.to``, ``load_state_dict`` (which does not change the rows) and torch.compile.

    Args:
        model: the model, wrapped or not, on any device but meta.
        what: the tensor, or several of the same make; tied names are one tensor.
        rows: a slice, an index, a list or tensor of them, or a boolean mask of shape (rows,).
        dim: the dimension that the rows count along.
        gradients: in the middle of a step, with gradients pending: ``refuse``, or ``drop`` them.

    Returns:
        The handle: proof and undo. It may be dropped; the hold stays, until
        :func:`frostline.unfreeze` thaws the tensor.

    Raises:
        SelectorError: (a ValueError) the selector matches nothing, there is no such dimension, or
            the rows are empty or out of range.
        PlanError: (a ValueError) the tensor, or some of the rows, are frozen already; its content
            cannot be held (meta, sharded, quantised), or a module would rewrite it.
        TransitionError: (a RuntimeError) gradients are pending.
        In each case nothing has changed.

    >>> import frostline as fl
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10))
    >>> frozen = fl.freeze_rows(model, "0.weight", slice(0, 8))
    >>> print(frozen)
    0.weight, dim 0, rows 0:8 (8 of 10)
    """
    inventory = take_inventory(model)
    groups = select_in(inventory, as_selector(what)).groups
    refuse_lazy(groups)
    refuse_renormalised(groups)
    wanted = [(alias, group, rows, dim) for group in groups for alias in group.firsts]
    checked = [_check(*each) for each in wanted]
    settle_gradients(inventory, gradients)
    return FrozenRows([_hold(*each) for each in checked])


class FrozenRows:
    """Rows held by one call: their proof and their undo; a context manager, undone on exit.

    >>> import frostline as fl
    >>> from torch import nn
    >>> layer = nn.Linear(4, 4)
    >>> with fl.freeze_rows(layer, "weight", [0, 3], dim=1) as frozen:
    ...     frozen.names, frozen.verify().parameters
    (('weight',), 1)
    """

    def __init__(self, held: list[tuple[str, list[RowHold]]]) -> None:
        self._held = held
        self._undone = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors of which rows are held now."""
        return tuple(name for name, _ in self._in_force())

    @property
    def rows(self) -> dict[str, tuple[int, ...]]:
        """Name → the rows that are held, in order."""
        return {name: tuple(hold.kept.index.tolist()) for name, hold in self._in_force()}

    def verify(self) -> Proof:
        """Prove that every held row is bitwise what it was when it was frozen.

        Raises:
            FrozenChangedError: (a RuntimeError) names each tensor whose rows moved, and how far.
            TransitionError: (a RuntimeError) the rows were undone or thawed.
        """
        start = time.perf_counter()
        held = list(self._in_force())
        if not held:
            raise TransitionError(
                "nothing to verify: the rows were undone or thawed; verify before that"
            )
        changes = [change for name, hold in held if (change := _change(name, hold)) is not None]
        if changes:
            raise FrozenChangedError(describe(changes, len(held)), changes)
        return Proof(
            parameters=len(held),
            buffers=0,
            bytes=sum(tensor_bytes(hold.kept.values) for _, hold in held),
            seconds=time.perf_counter() - start,
        )

    def undo(self) -> None:
        """Let the rows train again from where they are; once."""
        self._undone = True
        for _, holds in self._held:
            for hold in holds:
                hold.detach()

    def _in_force(self) -> Iterator[tuple[str, RowHold]]:
        for name, holds in self._held:
            if not self._undone and not holds[0].kept.lifted:
                yield name, holds[0]

    def __enter__(self) -> FrozenRows:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __str__(self) -> str:
        lines = [f"{name}, {_said(holds)}" for name, holds in self._held]
        return "\n".join(lines) + (" (undone)" if self._undone else "")

    def __repr__(self) -> str:
        return f"<FrozenRows {str(self)!r}>"


def _check(
    alias: Alias, group: TensorGroup, rows: Rows, dim: int
) -> tuple[Alias, TensorGroup, KeptRows]:
    """Refuse what cannot be held; only then are the rows read."""
    parameter = alias.tensor
    assert isinstance(parameter, nn.Parameter)
    if not -parameter.ndim <= dim < parameter.ndim:
        raise SelectorError(
            f"{alias.name} has no dimension {dim}: its shape is {tuple(parameter.shape)}"
        )
    dim %= parameter.ndim
    where = f"{alias.name}, dim {dim}"
    index = row_index(rows, size=parameter.shape[dim], where=where)
    if not has_plain_content(parameter):
        raise PlanError(
            f"{alias.name} has no rows to hold: it is a {type(parameter).__name__} on"
            f" {parameter.device} without content of its own (meta, sharded or quantised). Load"
            " the weights first, and freeze rows before sharding"
        )
    if not parameter.requires_grad:
        raise PlanError(f"{alias.name} is frozen as a whole already: thaw it with fl.unfreeze")
    for hold in row_holds(alias.owner, alias.name.rpartition(".")[2]):
        both = set(index.tolist()) & set(hold.kept.index.tolist())
        if hold.kept.dim == dim and both and not hold.kept.lifted:
            raise PlanError(f"{where}: row {min(both)} is frozen already; undo that first")
    return alias, group, KeptRows(parameter, index, dim)


def _hold(alias: Alias, group: TensorGroup, kept: KeptRows) -> tuple[str, list[RowHold]]:
    """Hang a hook on every module that holds the tensor: a load may untie them."""
    owners = [other for other in group.aliases if other.tensor is alias.tensor]
    places = {(id(a.owner), a.name.rpartition(".")[2]): a for a in owners}
    return alias.name, [RowHold(a.owner, key, kept) for (_, key), a in places.items()]


def _change(name: str, hold: RowHold) -> Change | None:
    parameter, kept = hold.parameter, hold.kept
    moved = kept.movement(parameter) if parameter is not None else None
    if parameter is not None and moved is None:
        return None
    return Change(
        name=f"{name}[{say_rows(kept.index)}]",
        kind="parameter",
        elements=kept.values.numel(),
        moved=moved.moved if moved is not None and moved.compared else None,
        max_abs=moved.max_abs if moved is not None else float("nan"),
        cause="written by other means than a torch optimizer's step, which puts held rows back",
    )


def _said(holds: list[RowHold]) -> str:
    kept = holds[0].kept
    parameter = holds[0].parameter
    size = parameter.shape[kept.dim] if parameter is not None else "?"
    return f"dim {kept.dim}, rows {say_rows(kept.index)} ({len(kept.index)} of {size})"
