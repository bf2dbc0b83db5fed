"""Finding the repeated part of a model: lists of alike modules, numbered siblings, plain layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn
from torch.nn.parameter import is_lazy

from frostline.naming import Inventory
from frostline.units import format_number_of

_NUMBERED = re.compile(r"(?P<prefix>.*\D)(?P<number>\d+)[a-zA-Z]?")
_PLAIN_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Modules of a model that lie one above the other, from the input up.

    Attributes:
        container: canonical name of the module that holds them, "" for the model.
        members: canonical names of the modules, in definition order.
        numel: scalars that they hold.
        where: in words, what they are and where they lie.
    """

    container: str
    members: tuple[str, ...]
    numel: int
    where: str


class Tree:
    """The modules of a model by name: what is below what, and what holds parameters.

    A shared module is there under its first name only, and a wrapper is what it wraps.
    """

    def __init__(self, inventory: Inventory) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.again: dict[str, str] = {}  # a later name of a shared module → its first one
        self._children: dict[str, list[str]] = {}
        self._tensors: Counter[str] = Counter()
        self._scalars: Counter[str] = Counter()
        self._matrices: Counter[str] = Counter()
        first_names: dict[int, str] = {}
        for name, module, _ in inventory.placements:
            first = first_names.setdefault(id(module), name)
            if first != name:
                self.again[name] = first
                continue
            if name and name not in self.modules:
                self._children.setdefault(name.rpartition(".")[0], []).append(name)
            self.modules[name] = module
        for group in inventory.groups:
            # A lazy parameter has no shape yet: it is taken for a weight.
            ranks = [2 if is_lazy(p) else p.ndim for p in group.named.values()]
            for name in prefixes(group.name):
                self._tensors[name] += 1
                self._scalars[name] += group.numel
                self._matrices[name] += max(ranks) >= 2

    def below(self, name: str) -> list[str]:
        """The children of a module that hold parameters, in definition order."""
        return [child for child in self._children.get(name, []) if self._tensors[child]]

    def numel(self, names: Iterable[str]) -> int:
        """Scalars in these modules; a tied tensor counts where it is defined first."""
        return sum(self._scalars[name] for name in names)

    def is_composite(self, name: str) -> bool:
        """Whether a module holds parameters in modules below it."""
        return bool(self.below(name))

    def has_matrix(self, name: str) -> bool:
        """Whether something in the module has two dimensions or more: a norm has not."""
        return self._matrices[name] > 0

    def is_embedding(self, name: str) -> bool:
        """Whether it is where an input enters: an embedding, or named as one."""
        # BART defines `layernorm_embedding` behind the blocks that it comes before.
        module = self.modules.get(self.again.get(name, name))
        named_so = name.lower().endswith(("embedding", "embeddings"))
        return named_so or isinstance(module, nn.Embedding | nn.EmbeddingBag)


def find_stacks(tree: Tree) -> tuple[list[Stack], list[Stack]]:
    """The stacks that make up the model, in definition order, and those that are left aside.

    The one that holds the most parameters counts, and each that holds a quarter of that or is
    its decoder (its encoder). What lies inside another is no stack of its own.
    """
    order = {name: rank for rank, name in enumerate(tree.modules)}
    disjoint: list[Stack] = []
    # A list of one is a stack only where it neither holds nor lies in one of several.
    for stack in sorted(_candidates(tree), key=lambda s: (len(s.members) == 1, -s.numel)):
        if not any(_nested(stack, other) or _nested(other, stack) for other in disjoint):
            disjoint.append(stack)
    if not disjoint:
        return [], []
    main, *others = disjoint
    taken = [main, *(other for other in others if _belongs(main, other))]
    aside = [other for other in others if other not in taken]
    taken.sort(key=lambda stack: order[stack.members[0]])
    return taken, aside


def side_by_side(tree: Tree, stacks: Sequence[Stack]) -> tuple[Stack, Stack] | None:
    """Two lists of one length in one module: they may run in turn, one of each (XLM does)."""
    lists = [s for s in stacks if isinstance(tree.modules[s.container], nn.ModuleList)]
    for at, one in enumerate(lists):
        for other in lists[:at]:
            parents = {stack.container.rpartition(".")[0] for stack in (one, other)}
            if len(parents) == 1 and len(one.members) == len(other.members):
                return other, one
    return None


def plain_layers(tree: Tree) -> tuple[list[str], str | None]:
    """The layers of a model without stacks, and its head: the children, plain containers opened.

    Embeddings at the front and what has no matrix (a norm) are no layers. A linear layer at the
    very end is the head, and so not among them; None if there is no such layer.
    """
    layers = _layers_below(tree, "")
    if len(layers) < 2 or not isinstance(tree.modules[layers[-1]], nn.Linear):
        return layers, None
    *layers, head = layers
    if len(layers) == 1:
        layers = _layers_below(tree, layers[0]) or layers
    return layers, head


def prefixes(name: str) -> list[str]:
    """The name and everything above it, outermost first, without the root.

    >>> prefixes("encoder.layer.1")
    ['encoder', 'encoder.layer', 'encoder.layer.1']
    """
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _candidates(tree: Tree) -> list[Stack]:
    found = []
    for name, module in tree.modules.items():
        composite = [child for child in tree.below(name) if tree.is_composite(child)]
        if not composite or tree.is_embedding(name):
            continue
        for members in _alike(tree, name, module, composite):
            kinds = Counter(type(tree.modules[member]).__name__ for member in members)
            count = format_number_of(len(members), "module")
            found.append(
                Stack(
                    container=name,
                    members=tuple(members),
                    numel=tree.numel(members),
                    where=f"{count} ({', '.join(kinds)}) in {name or 'the model'}",
                )
            )
    return found


def _alike(tree: Tree, name: str, module: nn.Module, composite: Sequence[str]) -> list[list[str]]:
    """Those of a module's children that are blocks of one kind, a list for each kind."""
    if isinstance(module, nn.ModuleList):
        # A hybrid (Mamba and attention layers in turn) lists several classes as its blocks.
        return [list(composite)] if 2 * len(composite) >= len(tree.below(name)) else []
    if isinstance(module, nn.Sequential):
        classes = Counter(type(tree.modules[child]) for child in composite)
        ((most, count),) = classes.most_common(1)
        if count >= 2 and 2 * count >= len(composite):
            return [[child for child in composite if type(tree.modules[child]) is most]]
    families: dict[str, list[tuple[int, str]]] = {}
    for child in composite:
        match = _NUMBERED.fullmatch(child.rpartition(".")[2])
        if match:
            families.setdefault(match["prefix"], []).append((int(match["number"]), child))
    return [[child for _, child in family] for family in families.values() if _is_a_run(family)]


def _is_a_run(family: Sequence[tuple[int, str]]) -> bool:
    """layer1 to layer4, inception3a to inception5b, dec3 to dec1; not conv1 and conv5."""
    steps = {after - before for (before, _), (after, _) in pairwise(family)}
    return len(family) >= 2 and (steps <= {0, 1} or steps <= {0, -1})


def _nested(one: Stack, other: Stack) -> bool:
    roots = tuple(f"{member}." for member in other.members)
    return any(f"{member}.".startswith(roots) for member in one.members)


def _belongs(main: Stack, other: Stack) -> bool:
    if 4 * other.numel >= main.numel:
        return True
    paths = zip(main.members[0].split("."), other.members[0].split("."), strict=False)
    differing = next(({mine, theirs} for mine, theirs in paths if mine != theirs), set())
    return differing == {"encoder", "decoder"}


def _layers_below(tree: Tree, name: str) -> list[str]:
    layers = [n for n in _opened(tree, name) if tree.has_matrix(n) and not tree.is_embedding(n)]
    # All in one module of the user's own: its layers are meant.
    while len(layers) == 1 and (inner := _layers_below(tree, layers[0])):
        layers = inner
    return layers


def _opened(tree: Tree, name: str) -> list[str]:
    layers: list[str] = []
    for child in tree.below(name):
        plain = isinstance(tree.modules[child], _PLAIN_CONTAINERS) and tree.is_composite(child)
        layers += _opened(tree, child) if plain else [child]
    return layers
