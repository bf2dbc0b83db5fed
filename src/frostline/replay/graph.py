"""What one forward pass did, as data: calls of modules, operations, and the values between them.

A *value* is a piece of memory at one moment: an operation that writes in place makes a new value
of the same memory, and a view is the value that it views. Values are numbered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from frostline.replay.captured import Captured
from frostline.replay.layout import Layout
from frostline.replay.windows import Window

FROM_OUTSIDE = -1
"""In the place of a call: what the top-level call was given."""


class Place(NamedTuple):
    """Where in a forward pass a module is called.

    Attributes:
        name: the module's canonical name.
        turn: which call of that module in the pass this is, from 0.
    """

    name: str
    turn: int

    def __str__(self) -> str:
        name = self.name or "the model"
        return f"{name} (call {self.turn + 1})" if self.turn else name


@dataclass(kw_only=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        place: where.
        module: the module.
        parent: index of the call that it was made in; None for the outermost.
        end: index of the first call after it that is not inside of it.
        arguments: the value of each tensor argument.
        returned_by: for each tensor argument the calls that returned this very tensor, and where
            among their results; ``FROM_OUTSIDE`` for an argument of the top-level call.
        takes_plain: whether it is given anything beside tensors.
        results: the value of each returned tensor.
        handed: for each returned tensor the position of the argument that it is, or None.
        layouts: the form of each returned tensor, not yet cut into samples.
        windows: what each returned tensor shows of its memory.
        template: what it returned, without the tensors' memory.
        first_operation: how many operations had run before it.
        effect: what it does beside computing its output: then no call around it is whole either.
        unfit: what is wrong with its output alone.
        is_hooked: whether somebody's hook hangs on the module.
        is_compiled: whether it is one compiled call, though it was traced uncompiled.
        trains: whether a tensor in the module or below it is trainable.
        seconds: how long it took, under observation.
    """

    place: Place
    module: nn.Module
    parent: int | None
    end: int = 0
    arguments: list[int] = field(default_factory=list)
    returned_by: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    takes_plain: bool = False
    results: list[int] = field(default_factory=list)
    handed: list[int | None] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    windows: list[Window | None] = field(default_factory=list)
    template: Any = None
    first_operation: int = 0
    effect: str | None = None
    unfit: str | None = None
    is_hooked: bool = False
    is_compiled: bool = False
    trains: bool = False
    seconds: float = 0.0


class Operation(NamedTuple):
    """One operation.

    Attributes:
        call: index of the innermost call that it ran in.
        reads: the values that it took.
        writes: the values that it made.
        is_random: whether a random generator advanced.
        mixes: whether its result has a shape that depends on content (``nonzero``), or it groups
            rows (grouped matrix products): batch-mates then change each other's last bits.
        is_uneven: whether the last elements of its result have other bits than they would have
            further in front.
        overwrites: the values that lay in the memory that it wrote to.
        name: of the kernel.
        windows: for each of what it reads, through which window.
    """

    call: int
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    is_random: bool
    mixes: bool
    is_uneven: bool
    overwrites: tuple[int, ...]
    name: str
    windows: tuple[Window | None, ...]


class Escape(NamedTuple):
    """A value that left the tensors for Python.

    Attributes:
        call: index of the innermost call in which it did.
        value: the value.
        how: by which method.
        after: how many operations had run before.
        is_flag: whether it is a single yes or no.
    """

    call: int
    value: int
    how: str
    after: int
    is_flag: bool


@dataclass(kw_only=True, eq=False)
class Graph:
    """One top-level call of a model or of a part of it.

    Attributes:
        calls: all calls, in the order in which they began; the first is the top-level one.
        operations: all operations, in order.
        escapes: what left for Python.
        trainable: values that are trainable tensors, or need a gradient.
        constant: values that are the model's own frozen tensors, or were made from nothing.
        names: values that are the model's own tensors → their names.
        inputs: values of the top-level call's tensor arguments, in order.
        foreign: values of tensors that are neither the model's nor arguments, nor were made here.
        results: values of the tensors that the top-level call returned.
        hidden: values held by opaque objects among what the top-level call returned.
        returns_floats: whether what it returned holds floating values, which NaN would reach.
        viewed: calls in the own code of which a view was made → values that were viewed there.
        left: values that the pass has left in attributes of the model's modules.
        has_own_backward: whether what was returned has a backward that somebody wrote by hand,
            which may use what it was given in another way than the forward pass.
        writes_model: whether it wrote into the model's own tensors, even if it put them back.
        seconds: how long it took, under observation.
        captured: what its calls returned; None if the pass also leaves something elsewhere, or
            when it has been used.
    """

    calls: list[Call] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    escapes: list[Escape] = field(default_factory=list)
    trainable: set[int] = field(default_factory=set)
    constant: set[int] = field(default_factory=set)
    names: dict[int, str] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    foreign: set[int] = field(default_factory=set)
    results: list[int] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)
    returns_floats: bool = True
    viewed: dict[int, set[int]] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    has_own_backward: bool = False
    writes_model: bool = False
    seconds: float = 0.0
    captured: Captured | None = None

    def is_inside(self, call: int, outer: int) -> bool:
        """Whether a call is another one, or was made inside of it."""
        return outer <= call < self.calls[outer].end

    def around(self, call: int) -> Iterator[int]:
        """The call and those that it was made in, from the inside out."""
        at: int | None = call
        while at is not None:
            yield at
            at = self.calls[at].parent

    def take_captured(self) -> Captured | None:
        """What was captured, once: it takes memory, and holds for the traced pass alone."""
        captured, self.captured = self.captured, None
        return captured
