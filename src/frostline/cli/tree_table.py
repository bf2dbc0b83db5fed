"""A model's tree as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Literal, TypeAlias

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from frostline.report.tree import Node, State, TensorRecord, runs
from frostline.units import format_bytes, format_count

# A word and a symbol as well as a colour: not everyone sees colours, and a pipe has none.
_STATES: dict[State, str] = {
    "frozen": "❄ frozen",
    "trainable": "● trainable",
    "partly": "◐ partly",
    "unknown": "",
}
Replay: TypeAlias = Literal["skipped", "kept"]
"""Not computed any more; and not computed, since what it returns is kept."""

_REPLAYED: dict[Replay, str] = {"skipped": "❄ skipped", "kept": "❄ kept"}
_BUFFER = "· buffer"
_STYLES = {
    **dict.fromkeys(("❄ frozen", *_REPLAYED.values()), "cyan"),
    "● trainable": "green",
    "◐ partly": "yellow",
    _BUFFER: "dim",
}
_NUMBERS = ("parameters", "bytes")
_GAP = 2  # cells between two columns
_LEAST_NAME = 20


def tree_table(
    tree: Node,
    *,
    title: str,
    width: int = 80,
    max_depth: int | None = None,
    everything: bool = False,
    replay: Mapping[str, Replay] = MappingProxyType({}),
) -> Table:
    """Draw a tree.

    Args:
        tree: the model, as :func:`frostline.report.tree.build_tree` gives it.
        title: what the root is called.
        width: columns to fit into: where it is tight, classes are shortened, but not names.
        max_depth: levels below the root to show; None for all.
        everything: show each of several equal blocks, and each buffer, on lines of their own.
        replay: module name → what replay does with its output, in place of its state.

    >>> from rich.console import Console
    >>> from frostline.report.tree import build_tree
    >>> fc = TensorRecord(
    ...     name="fc.bias", kind="parameter", shape=(4,), dtype="float32", elements=4, nbytes=16,
    ...     frozen=True,
    ... )
    >>> tree = build_tree([fc], {"fc": "Linear"})
    >>> Console(width=60).print(tree_table(tree, title="net", width=60))
    name           state     parameters  bytes
    ──────────────────────────────────────────
    net            ❄ frozen           4   16 B
    └─ fc  Linear  ❄ frozen           4   16 B
       └─ bias     ❄ frozen           4   16 B
    """
    depth = -1 if max_depth is None else max_depth
    rows = list(_rows([tree], depth=depth, everything=everything, title=title, replay=replay))
    columns = _columns(rows)
    taken = sum(
        max(cell_len(cell) for cell in (heading, *cells)) + _GAP
        for heading, cells in columns.items()
    )
    room = width - taken
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    # Long names are folded; but a name's column that may fold is the first that rich gives away
    # on a terminal too narrow for all.
    table.add_column("name", overflow="fold", no_wrap=room < _LEAST_NAME)
    for heading in columns:
        justify: Literal["left", "right"] = "right" if heading in _NUMBERS else "left"
        table.add_column(heading, justify=justify, no_wrap=True)
    for row, *cells in zip(rows, *columns.values(), strict=True):
        table.add_row(row.label(room), *(Text(cell, _STYLES.get(cell, "")) for cell in cells))
    return table


def _columns(rows: list[_Row]) -> dict[str, list[str]]:
    """The cells beside the names, heading by heading, without columns that say nothing."""
    columns = {
        "state": [row.state for row in rows],
        "parameters": [row.parameters for row in rows],
        "bytes": [row.nbytes for row in rows],
        "dtype": [row.dtype for row in rows],
    }
    if not rows[0].state and not {row.state for row in rows} & {*_REPLAYED.values()}:
        del columns["state"]
    if len(set(columns["dtype"]) - {""}) < 2:
        del columns["dtype"]
    return columns


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One line of the table: what the tree draws, a name, a detail, and the other cells."""

    guide: str
    name: str
    detail: str = ""
    state: str = ""
    parameters: str = ""
    nbytes: str = ""
    dtype: str = ""

    def label(self, width: int) -> Text:
        """The first cell, with the detail cut to what fits into ``width``."""
        label = Text.assemble((self.guide, "dim"), self.name)
        room = width - label.cell_len - _GAP
        if self.detail and room > 3:
            detail = Text(self.detail, style="dim")
            detail.truncate(room, overflow="ellipsis")
            label.append(" " * _GAP).append(detail)
        return label


def _rows(
    run: list[Node],
    *,
    depth: int,
    everything: bool,
    replay: Mapping[str, Replay],
    title: str = "",
    guide: str = "",
    below: str = "",
) -> Iterator[_Row]:
    """The row of a module, or of a run of equal ones, and the rows of what is in it.

    Args:
        run: the module, or the neighbours that repeat it.
        depth: levels still to show; below zero means all.
        everything: as in :func:`tree_table`.
        replay: as there.
        title: what to call it instead of its name.
        guide: what is drawn of the tree in front of it.
        below: what is drawn of the tree in front of the rows in it.
    """
    node = run[0]
    times = f"{len(run)} × " if len(run) > 1 else ""
    totals = node.totals
    yield _Row(
        guide=guide,
        name=f"{node.name} … {run[-1].name}" if times else title or node.name,
        detail=node.type_name,
        state=_REPLAYED[replay[node.path]] if node.path in replay else _STATES[node.state],
        parameters=times + format_count(totals.parameters) if totals.parameters else "",
        nbytes=times + format_bytes(totals.nbytes) if totals.nbytes else "",
        dtype=node.dtypes[0] if len(node.dtypes) == 1 else "mixed" if node.dtypes else "",
    )
    if depth == 0:
        return
    tensors = _grouped(node.tensors, everything)
    inner = [[child] for child in node.children] if everything else runs(node.children)
    # Equal blocks are told apart where replay does: the last of them is often the frost line.
    inner = [
        list(part)
        for alike in inner
        for _, part in groupby(alike, lambda child: replay.get(child.path))
    ]
    last = len(tensors) + len(inner) - 1
    for index, records in enumerate(tensors):
        yield _tensor_row(records, guide=below + ("└─ " if index == last else "├─ "))
    for index, children in enumerate(inner, len(tensors)):
        is_last = index == last
        yield from _rows(
            children,
            depth=depth - 1,
            everything=everything,
            replay=replay,
            guide=below + ("└─ " if is_last else "├─ "),
            below=below + ("   " if is_last else "│  "),
        )


def _grouped(tensors: tuple[TensorRecord, ...], everything: bool) -> list[list[TensorRecord]]:
    """Each tensor by itself, but a module's buffers together where they stand alike."""
    buffers = [record for record in tensors if record.kind == "buffer"]
    alike = len({(record.frozen, record.same_as) for record in buffers}) == 1
    if everything or len(buffers) < 2 or not alike:
        return [[record] for record in tensors]
    return [*([record] for record in tensors if record.kind == "parameter"), buffers]


def _tensor_row(records: list[TensorRecord], *, guide: str) -> _Row:
    record = records[0]
    state = _BUFFER if record.kind == "buffer" else ""
    if record.frozen is not None:
        state = _STATES["frozen" if record.frozen else "trainable"]
    shared = record.same_as is not None
    if len(records) > 1:
        name, size, dtype = f"{len(records)} buffers", "", ""
    else:
        name, size, dtype = record.leaf, _shape(record), record.dtype
    return _Row(
        guide=guide,
        name=name,
        detail=f"= {record.same_as}" if shared else "",
        state=state,
        # Its shape says more about one tensor than the product of it.
        parameters=size,
        nbytes="shared" if shared else format_bytes(sum(record.nbytes for record in records)),
        dtype=dtype,
    )


def _shape(record: TensorRecord) -> str:
    if record.shape is None:
        return "not yet known"  # a lazy module before its first forward
    return "×".join(map(str, record.shape)) or "scalar"
