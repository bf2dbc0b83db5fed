"""A model's tensors as a tree with totals: pure data, whatever draws it.

Neither torch nor a model is needed: a tree is built from records, which may come from a live
model or from the header of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

State: TypeAlias = Literal["frozen", "trainable", "partly", "unknown"]
"""Of the parameters below: all frozen, all trainable, some of each, or none or not known."""


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """What there is to know of one tensor, under one of its names.

    Attributes:
        name: canonical, dotted name.
        kind: ``parameter`` or ``buffer``.
        shape: its sizes, () for a scalar; None before the first forward of a lazy module.
        dtype: as torch names it, such as ``float32``.
        elements: number of scalars.
        nbytes: bytes of memory.
        frozen: whether it stays as it is in training; None where that is not known, as for a
            buffer that no freeze holds, or a tensor in a file.
        same_as: the name under which this very memory was listed before; then it adds nothing to
            totals.
    """

    name: str
    kind: Literal["parameter", "buffer"]
    shape: tuple[int, ...] | None
    dtype: str
    elements: int
    nbytes: int
    frozen: bool | None = None
    same_as: str | None = None

    @property
    def leaf(self) -> str:
        """The last component of the name."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over tensors, each memory once.

    Attributes:
        parameter_tensors: number of parameters, tied ones once.
        parameters: scalars in them.
        trainable: scalars in those that are trainable.
        parameter_bytes: bytes of the parameters.
        trainable_bytes: bytes of those that are trainable.
        buffer_tensors: number of buffers.
        buffer_bytes: bytes of the buffers.
    """

    parameter_tensors: int = 0
    parameters: int = 0
    trainable: int = 0
    parameter_bytes: int = 0
    trainable_bytes: int = 0
    buffer_tensors: int = 0
    buffer_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of parameters and buffers together."""
        return self.parameter_bytes + self.buffer_bytes


@dataclass(frozen=True, kw_only=True)
class Node:
    """A module: its own tensors, the modules in it, and totals of all that is below.

    Attributes:
        name: last component of its name; the root's is "".
        path: canonical name of the module, "" for the root.
        type_name: its class; "" where that is not known.
        tensors: the tensors that it holds itself.
        children: the modules in it that hold tensors, in definition order.
        totals: over all tensors below.
        state: over all parameters below, tied ones too.
        dtypes: of all parameters below, in order of appearance.
    """

    name: str
    path: str
    type_name: str
    tensors: tuple[TensorRecord, ...]
    children: tuple[Node, ...]
    totals: Totals
    state: State
    dtypes: tuple[str, ...]


def build_tree(records: Iterable[TensorRecord], types: Mapping[str, str] | None = None) -> Node:
    """Arrange tensors by the dots in their names.

    Args:
        records: in definition order, names not repeated.
        types: module name → class name, as far as known.

    >>> fc = TensorRecord(
    ...     name="fc.bias", kind="parameter", shape=(4,), dtype="float32", elements=4, nbytes=16
    ... )
    >>> tree = build_tree([fc], {"fc": "Linear"})
    >>> tree.children[0].type_name, tree.totals.parameters
    ('Linear', 4)
    """
    root = _Branch(path="")
    branches = {"": root}
    for record in records:
        owner = record.name.rpartition(".")[0]
        _branch(owner, branches).tensors.append(record)
    return _node(root, types or {})


def is_repeat(node: Node, previous: Node) -> bool:
    """Whether two siblings differ in nothing but their names: equal blocks of a deep model.

    >>> a, b = (
    ...     build_tree([TensorRecord(name=f"{i}.w", kind="parameter", shape=(2,), dtype="int8",
    ...                              elements=2, nbytes=2)]).children[0]
    ...     for i in range(2)
    ... )
    >>> is_repeat(a, b)
    True
    """
    return (
        # Totals first: unlike blocks nearly always differ there, and it is the cheap test.
        node.totals == previous.totals
        and (node.type_name, node.state, node.dtypes)
        == (previous.type_name, previous.state, previous.dtypes)
        and _tensors_match(node, previous)
        and [child.name for child in node.children] == [child.name for child in previous.children]
        and all(map(is_repeat, node.children, previous.children))
    )


def runs(children: Iterable[Node]) -> list[list[Node]]:
    """Neighbours that repeat each other, put together, in order.

    >>> runs([])
    []
    """
    found: list[list[Node]] = []
    for child in children:
        # Only children with numbers for names: "query" and "key" may look alike and are not.
        if found and child.name.isdigit() and is_repeat(child, found[-1][-1]):
            found[-1].append(child)
        else:
            found.append([child])
    return found


@dataclass
class _Branch:
    """A module while the tree is being put together."""

    path: str
    tensors: list[TensorRecord] = field(default_factory=list)
    children: list[_Branch] = field(default_factory=list)


def _branch(path: str, branches: dict[str, _Branch]) -> _Branch:
    if path not in branches:
        branch = branches[path] = _Branch(path=path)
        _branch(path.rpartition(".")[0], branches).children.append(branch)
    return branches[path]


def _node(branch: _Branch, types: Mapping[str, str]) -> Node:
    children = tuple(_node(child, types) for child in branch.children)
    own = [record for record in branch.tensors if record.same_as is None]
    parameters = [record for record in own if record.kind == "parameter"]
    trainable = [record for record in parameters if record.frozen is False]
    buffers = [record for record in own if record.kind == "buffer"]
    totals = Totals(
        parameter_tensors=len(parameters),
        parameters=sum(record.elements for record in parameters),
        trainable=sum(record.elements for record in trainable),
        parameter_bytes=sum(record.nbytes for record in parameters),
        trainable_bytes=sum(record.nbytes for record in trainable),
        buffer_tensors=len(buffers),
        buffer_bytes=sum(record.nbytes for record in buffers),
    )
    return Node(
        name=branch.path.rpartition(".")[2],
        path=branch.path,
        type_name=types.get(branch.path, ""),
        tensors=tuple(branch.tensors),
        children=children,
        totals=_sum([totals, *(child.totals for child in children)]),
        state=_state(branch.tensors, children),
        dtypes=_distinct(
            *(record.dtype for record in branch.tensors if record.kind == "parameter"),
            *(dtype for child in children for dtype in child.dtypes),
        ),
    )


def _sum(parts: list[Totals]) -> Totals:
    return Totals(**{name: sum(getattr(part, name) for part in parts) for name in vars(parts[0])})


def _state(tensors: list[TensorRecord], children: tuple[Node, ...]) -> State:
    states: set[State] = {child.state for child in children}
    for record in tensors:
        if record.kind == "parameter" and record.frozen is not None:
            states.add("frozen" if record.frozen else "trainable")
    states.discard("unknown")
    if not states:
        return "unknown"
    return states.pop() if len(states) == 1 else "partly"


def _distinct(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _tensors_match(node: Node, previous: Node) -> bool:
    def content(record: TensorRecord) -> tuple[object, ...]:
        return (
            record.leaf,
            record.kind,
            record.shape,
            record.dtype,
            record.frozen,
            record.same_as,
        )

    return [content(r) for r in node.tensors] == [content(r) for r in previous.tensors]
