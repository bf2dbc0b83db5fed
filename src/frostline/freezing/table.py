"""A model's frozen and trainable parts as a table that a person can read."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from frostline.naming import TensorGroup, take_inventory
from frostline.units import format_bytes, format_count


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run of neighbouring tensors that stand alike.

    Attributes:
        name: the module, or parameter, that holds exactly these.
        state: ``frozen`` or ``trainable``.
        tensors: number of tensors; tied ones count once.
        numel: number of scalars.
        nbytes: bytes of memory.
    """

    name: str
    state: str
    tensors: int
    numel: int
    nbytes: int


def summarise(model: nn.Module) -> list[Part]:
    """The fewest parts that are each wholly frozen or wholly trainable, in definition order.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> _ = model[0].requires_grad_(False)
    >>> [(part.name, part.state) for part in summarise(model)]
    [('0', 'frozen'), ('1', 'trainable')]
    """
    return _parts("", list(take_inventory(model).groups))


def freeze_table(model: nn.Module) -> str:
    """The parts of :func:`summarise` as text, with totals; at most 100 columns wide."""
    # Imported here: a table is printed now and then, Frostline is imported always.
    from rich import box
    from rich.console import Console
    from rich.table import Table

    parts = summarise(model)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("part", "state"):
        table.add_column(heading)
    for heading in ("tensors", "parameters", "bytes"):
        table.add_column(heading, justify="right")
    for part in parts:
        _add_row(table.add_row, part.name or "(all)", part.state, [part])
    table.add_section()
    for state in ("frozen", "trainable"):
        _add_row(table.add_row, "total", state, [part for part in parts if part.state == state])
    text = io.StringIO()
    Console(file=text, width=100, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines())


def _add_row(add: Callable[..., None], name: str, state: str, parts: list[Part]) -> None:
    add(
        name,
        state,
        str(sum(part.tensors for part in parts)),
        format_count(sum(part.numel for part in parts)),
        format_bytes(sum(part.nbytes for part in parts)),
    )


def _parts(name: str, groups: list[TensorGroup]) -> list[Part]:
    states = {_state(group) for group in groups}
    if len(states) == 1:
        return [
            Part(
                name=name,
                state=states.pop(),
                tensors=len(groups),
                numel=sum(group.numel for group in groups),
                nbytes=sum(group.nbytes for group in groups),
            )
        ]
    prefix = f"{name}." if name else ""
    children: dict[str, list[TensorGroup]] = {}
    for group in groups:
        child = prefix + group.name[len(prefix) :].partition(".")[0]
        children.setdefault(child, []).append(group)
    return [part for child, held in children.items() for part in _parts(child, held)]


def _state(group: TensorGroup) -> str:
    trains = any(parameter.requires_grad for parameter in group.named.values())
    return "trainable" if trains else "frozen"
