"""The blocks of a model, from the input up: what schedules freeze and thaw one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from frostline.errors import SelectorError
from frostline.naming import Inventory, take_inventory
from frostline.selection.stacks import Tree, find_stacks, plain_layers, prefixes, side_by_side
from frostline.selection.suggest import nearest
from frostline.units import format_count, format_names, format_number_of

_NAME_THEM = (
    "name the blocks from the input up, as in fl.blocks(model, ['layer1', 'layer2']), or the"
    " module that holds them, as in fl.blocks(model, 'encoder.layers')"
)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The ordered blocks of a model, and what lies around them.

    Every name of a parameter is in exactly one place: the stem, a block, between two, the head. A
    tied tensor has several names, so perhaps several places: GPT-2's embedding is in the stem, and
    as ``lm_head`` in the head.

    Attributes:
        names: canonical module names of the blocks, from the input up.
        stem: modules, or single parameters, before the first block; embeddings wherever they are.
        head: modules, or single parameters, after the last block.
        between: for each block, what is defined after it and before the next one.
        found: one sentence on how the blocks were found.
        numels: scalars in each of :attr:`layers`; a tied tensor counts where it is defined first.
        places: every name in :attr:`layers`, and later names of shared blocks, → number of the
            layer.
    """

    names: tuple[str, ...]
    stem: tuple[str, ...]
    head: tuple[str, ...]
    between: tuple[tuple[str, ...], ...] = field(repr=False)
    found: str
    numels: tuple[int, ...] = field(repr=False)
    places: Mapping[str, int] = field(repr=False, compare=False)

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """The model cut from the input up: the stem, each block with what follows it, the head.

        There are always ``len(self) + 2`` of them; stem and head may be empty.
        """
        middle = ((n, *extra) for n, extra in zip(self.names, self.between, strict=True))
        return (self.stem, *middle, self.head)

    def layer_of(self, name: str) -> int:
        """The number of the layer that a parameter or module lies in: an index of :attr:`layers`.

        Raises:
            SelectorError: (a ValueError) it lies in none, or around several.
        """
        for prefix in prefixes(name):
            if prefix in self.places:
                return self.places[prefix]
        raise SelectorError(f"{name!r} lies in no single layer of the model's blocks")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __str__(self) -> str:
        labels = ["stem", *map(str, range(len(self))), "head"]
        said = [format_names(names) or "-" for names in self.layers]
        counts = [format_count(numel) for numel in self.numels]
        wide, long = max(map(len, said)), max(map(len, counts))
        rows = zip(labels, said, counts, strict=True)
        lines = [f"{label:>4}  {name:<{wide}}  {count:>{long}}" for label, name, count in rows]
        return "\n".join([*lines, self.found])


def blocks(model: nn.Module, names: str | Sequence[str] | None = None) -> Blocks:
    """Find the ordered blocks of a model: encoder layers, stages, or plain layers.

    In this order: lists of alike modules (``bert.encoder.layer``, ``model.layers``; an encoder's,
    then its decoder's), ``Sequential`` and numbered stages (``features``, ``stages``, ``layer1`` to
    ``layer4``), else the layers of the model as they stand. The outermost repetition counts: a
    stage, not the units in it. No tensor content is read.

    Args:
        model: the model, wrapped or not, on any device (meta too).
        names: the blocks, named by the user, in the order that is wanted; or, as one string, the
            module of which they are the children.

    Raises:
        SelectorError: (a ValueError) there are no blocks, or a name is unknown, given twice,
            inside another one, or of a module without parameters of its own.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    >>> print(blocks(model))
    stem  -   0
       0  0  36
       1  2  20
    head  3  10
    the model has no list of alike modules: its 2 layers in order
    """
    return blocks_in(take_inventory(model), names)


def blocks_in(inventory: Inventory, names: str | Sequence[str] | None = None) -> Blocks:
    """:func:`blocks` on an inventory that was already taken."""
    tree = Tree(inventory)
    if names is not None:
        return _partition(inventory, tree, *_named(tree, names))
    stacks, aside = find_stacks(tree)
    pair = side_by_side(tree, stacks)
    if pair is not None:
        raise SelectorError(
            f"{pair[0].container} and {pair[1].container} are lists side by side, and nothing"
            f" tells whether their modules run in turn: {_NAME_THEM}"
        )
    if stacks:
        found = ", then ".join(stack.where for stack in stacks)
        if aside:
            found += f" (not counted: {format_names([stack.where for stack in aside])})"
        return _partition(inventory, tree, [m for s in stacks for m in s.members], found)
    layers, head = plain_layers(tree)
    if not layers:
        kind = type(inventory.placements[0].module).__name__
        raise SelectorError(f"no blocks found in this {kind}: {_NAME_THEM}")
    found = (
        "the model has no list of alike modules:"
        f" its {format_number_of(len(layers), 'layer')} in order"
    )
    return _partition(inventory, tree, layers, found, head=head)


def _named(tree: Tree, names: str | Sequence[str]) -> tuple[list[str], str]:
    if isinstance(names, str):
        container = _the_module(tree, names)
        inside = tree.below(container)
        if not inside:
            raise SelectorError(f"{names!r} holds no modules with parameters: {_NAME_THEM}")
        return inside, f"the children of {container}, named by the user"
    if not names or not all(isinstance(name, str) for name in names):
        raise SelectorError(f"expected names of modules, got {names!r}: {_NAME_THEM}")
    chosen = [_the_module(tree, name) for name in names]
    for rank, name in enumerate(chosen):
        if name in chosen[:rank]:
            raise SelectorError(f"block {name!r} is named twice: name each block once")
        for other in chosen:
            if name.startswith(f"{other}."):
                raise SelectorError(
                    f"blocks overlap: {name!r} is inside {other!r}; name one or the other"
                )
    return chosen, "named by the user"


def _the_module(tree: Tree, wanted: str) -> str:
    if wanted not in tree.modules or not wanted:
        known = [name for name in tree.modules if name]
        raise SelectorError(f"the model has no module {wanted!r}.{nearest(wanted, known)}")
    return wanted


def _partition(
    inventory: Inventory, tree: Tree, names: Sequence[str], found: str, *, head: str | None = None
) -> Blocks:
    """Put every name in its place around the blocks, by where it is defined.

    The head begins after the last block, or later, with the module ``head``.
    """
    above = {prefix for name in names for prefix in prefixes(name)[:-1]}
    entries = [
        (next(p for p in prefixes(alias.name) if p not in above), alias is group.aliases[0], group)
        for alias, group in sorted(
            ((alias, group) for group in inventory.groups for alias in group.aliases),
            key=lambda pair: pair[0].position,
        )
    ]
    ranks = {name: rank for rank, name in enumerate(names, 1)}
    inside = [at for at, (entry, first, _) in enumerate(entries) if entry in ranks and first]
    for name in names:
        if all(entries[at][0] != name for at in inside):
            raise SelectorError(
                f"block {name!r} holds no parameters of its own: leave it out of the names"
            )
    top = len(names) + 1
    head_from = next((at for at, (e, _, _) in enumerate(entries) if e == head), inside[-1] + 1)
    places: dict[str, int] = {}
    numels = [0] * (top + 1)
    current = 0
    for at, (entry, first, group) in enumerate(entries):
        if entry in ranks:
            zone = current = ranks[entry]
        elif tree.again.get(entry) in ranks:  # a block that is called once more
            zone = ranks[tree.again[entry]]
        elif tree.is_embedding(entry):
            zone = 0
        else:
            zone = top if at >= head_from else current
        numels[places.setdefault(entry, zone)] += group.numel if first else 0
    listed = [entry for entry in places if tree.again.get(entry) not in ranks]
    layers = [[e for e in listed if places[e] == rank] for rank in range(top + 1)]
    return Blocks(
        names=tuple(names),
        stem=tuple(layers[0]),
        head=tuple(layers[top]),
        between=tuple(
            tuple(entry for entry in layers[rank] if entry not in ranks) for rank in range(1, top)
        ),
        found=found,
        numels=tuple(numels),
        places=places,
    )
