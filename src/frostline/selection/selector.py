"""Selectors: which parameters, said once and the same in Python, YAML and on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, TypeAlias, Union

from torch import nn

from frostline.errors import SelectorError
from frostline.naming import Inventory
from frostline.selection.counted import parse_counted
from frostline.selection.patterns import GLOB_CHARACTERS, Dotted, Glob, Matches, Regex
from frostline.selection.structure import Before, Children, Members, OfClass, Where, class_names
from frostline.selection.suggest import nearest

Plain: TypeAlias = "str | list[Plain] | dict[str, Plain]"
"""A selector in YAML: a string, or ``any``, ``all``, ``not`` over others."""


class Matcher(Protocol):
    """What finds parameter groups in a model."""

    def find(self, inventory: Inventory) -> Matches:
        """The groups that match, with the aliases by which they do."""
        ...

    def plain(self) -> object:
        """The written form; raises SelectorError if there is none."""
        ...


@dataclass(frozen=True, eq=False)
class Selector:
    """A condition on parameters; combine selectors, and strings, with ``|``, ``&`` and ``~``.

    Selectors that are written the same are equal, so one that was saved and loaded is too.

    >>> str(glob("layers.[0-3].**") & ~Selector.parse("bias"))
    "all: ['layers.[0-3].**', {'not': 'bias'}]"
    """

    matcher: Matcher

    @staticmethod
    def parse(text: str) -> Selector:
        """Read a selector from a string; raises SelectorError if it is malformed."""
        return Selector(_parse(text))

    def find(self, inventory: Inventory) -> Matches:
        """The groups that match; raises SelectorError if none does, or no part of it."""
        found = self.matcher.find(inventory)
        if not found:
            raise SelectorError(_nothing(self.matcher, inventory))
        return found

    def plain(self) -> object:
        """The form that YAML holds; raises SelectorError if a part has none."""
        return self.matcher.plain()

    def __or__(self, other: SelectorLike) -> Selector:
        return Selector(AnyOf((self, as_selector(other))))

    def __ror__(self, other: SelectorLike) -> Selector:
        return as_selector(other) | self

    def __and__(self, other: SelectorLike) -> Selector:
        return Selector(AllOf((self, as_selector(other))))

    def __rand__(self, other: SelectorLike) -> Selector:
        return as_selector(other) & self

    def __invert__(self) -> Selector:
        return Selector(Not(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selector) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> object:
        try:
            return repr(self.plain())
        except SelectorError:  # a function or an object has no written form
            return self.matcher

    def __str__(self) -> str:
        try:
            plain = self.plain()
        except SelectorError:
            return repr(self.matcher)
        if isinstance(plain, dict):
            ((key, value),) = plain.items()
            return f"{key}: {value!r}"
        return str(plain)


SelectorLike: TypeAlias = Union[str, Selector, nn.Module, nn.Parameter, "Iterable[SelectorLike]"]
"""What can be given wherever a selector is wanted; several mean any of them."""


@dataclass(frozen=True)
class AnyOf:
    """What any of the parts matches."""

    parts: tuple[Selector, ...]

    def find(self, inventory: Inventory) -> Matches:
        """The union. Every part must match something: a typo must not hide behind its neighbour."""
        return reduce(_union, (part.find(inventory) for part in self.parts))

    def plain(self) -> object:
        """``{"any": [...]}``."""
        return {"any": [part.plain() for part in self.parts]}


@dataclass(frozen=True)
class AllOf:
    """What all of the parts match."""

    parts: tuple[Selector, ...]

    def find(self, inventory: Inventory) -> Matches:
        """The intersection."""
        return reduce(_intersection, (part.find(inventory) for part in self.parts))

    def plain(self) -> object:
        """``{"all": [...]}``."""
        return {"all": [part.plain() for part in self.parts]}


@dataclass(frozen=True)
class Not:
    """What the part does not match."""

    part: Selector

    def find(self, inventory: Inventory) -> Matches:
        """The complement, of whole groups: no alias of a matched tensor is in it."""
        found = self.part.find(inventory)
        return {
            index: frozenset(alias.position for alias in group.aliases)
            for index, group in enumerate(inventory.groups)
            if index not in found
        }

    def plain(self) -> object:
        """``{"not": ...}``."""
        return {"not": self.part.plain()}


def as_selector(value: SelectorLike) -> Selector:
    """Make a selector of a string, a module, a parameter, or several of those (any of them).

    Raises SelectorError for an empty list or anything else.
    """
    if isinstance(value, Selector):
        return value
    if isinstance(value, str):
        return Selector.parse(value)
    if isinstance(value, nn.Module | nn.Parameter):
        return Selector(Members((value,)))
    if isinstance(value, Iterable) and not isinstance(value, dict | bytes):
        parts = tuple(as_selector(part) for part in value)
        if not parts:
            raise SelectorError("an empty list selects nothing: name at least one selector")
        return parts[0] if len(parts) == 1 else Selector(AnyOf(parts))
    raise SelectorError(
        f"cannot select by {value!r}: give a string such as 'encoder.layer.1', 'layers.*.bias',"
        " 're:...', 'type:BatchNorm2d', a selector, a module, a parameter, or a list of those"
    )


def from_plain(value: object) -> Selector:
    """Read a selector from its YAML form: a string, a list, or ``any`` / ``all`` / ``not``."""
    if isinstance(value, str):
        return Selector.parse(value)
    if isinstance(value, list) and value:
        return as_selector([from_plain(part) for part in value])
    if isinstance(value, dict) and len(value) == 1:
        ((key, inner),) = value.items()
        if key == "not":
            return ~from_plain(inner)
        if key in ("any", "all") and isinstance(inner, list) and inner:
            parts = tuple(from_plain(part) for part in inner)
            return Selector(AnyOf(parts) if key == "any" else AllOf(parts))
    raise SelectorError(
        f"{value!r} is not a selector: write a string, a list of selectors, or one of"
        " {any: [...]}, {all: [...]}, {not: ...}"
    )


def glob(pattern: str) -> Selector:
    """Select by a glob over the whole name; ``*`` stays inside a component, ``**`` crosses them.

    >>> glob("vit.layers.[0-9].**")
    Selector(matcher=Glob(pattern='vit.layers.[0-9].**'))
    """
    return Selector(Glob(pattern))


def regex(pattern: str) -> Selector:
    r"""Select by a regular expression that is searched for in the name.

    >>> str(regex(r"^bert\.encoder\.layer\.[0-7]\."))
    're:^bert\\.encoder\\.layer\\.[0-7]\\.'
    """
    return Selector(Regex(pattern))


def kind(*classes: type[nn.Module]) -> Selector:
    """Select what lies in modules of these classes, subclasses included.

    >>> from torch import nn
    >>> str(kind(nn.BatchNorm2d))
    'type:torch.nn.modules.batchnorm.BatchNorm2d'
    """
    for given in classes:
        if not (isinstance(given, type) and issubclass(given, nn.Module)):
            raise SelectorError(f"fl.kind takes classes of modules, got {given!r}")
    if not classes:
        raise SelectorError("fl.kind() needs at least one class of modules")
    return Selector(OfClass(classes))


def where(accepts: Callable[[str, nn.Parameter], bool]) -> Selector:
    """Select the parameters for which ``accepts(name, parameter)`` is true under any name.

    >>> one_dimensional = where(lambda name, p: p.ndim == 1)
    """
    if not callable(accepts):
        raise SelectorError(f"fl.where takes a function of (name, parameter), got {accepts!r}")
    return Selector(Where(accepts))


def before(name: str) -> Selector:
    """Select everything defined before a module or parameter, and no part of it.

    >>> str(before("layer4"))
    'before:layer4'
    """
    return Selector(Before(name))


def first(count: int, container: str = "") -> Selector:
    """Select the first ``count`` children with parameters of a module (of the model, by default).

    >>> str(first(8, "vit.layers"))
    'first:8:vit.layers'
    """
    return Selector(Children(count, container, "first"))


def last(count: int, container: str = "") -> Selector:
    """Select the last ``count`` children with parameters of a module (of the model, by default).

    >>> str(last(2, "vit.layers"))
    'last:2:vit.layers'
    """
    return Selector(Children(count, container, "last"))


def _parse(text: str) -> Matcher:
    stripped = text.strip()
    scheme, colon, rest = stripped.partition(":")
    if not stripped or (colon and not rest):
        raise SelectorError(f"selector {text!r} is empty: name what to select")
    if not colon:
        return Glob(stripped) if GLOB_CHARACTERS & set(stripped) else Dotted(stripped)
    if scheme == "re":
        return Regex(rest)
    if scheme == "type":
        return OfClass((rest,))
    if scheme == "before":
        return Before(rest)
    if scheme in ("first", "last"):
        count, _, container = rest.partition(":")
        if not count.isdigit():
            raise SelectorError(
                f"selector {text!r}: expected a count, as in '{scheme}:2:encoder.layers',"
                f" got {count!r}"
            )
        return Children(int(count), container, "first" if scheme == "first" else "last")
    counted = parse_counted(stripped)
    if counted is not None:
        return counted
    raise SelectorError(
        f"selector {text!r}: unknown kind {scheme!r}; known are re:, type:, before:, first:, last:,"
        " blocks:, layers:, lowest:"
    )


def _union(left: Matches, right: Matches) -> Matches:
    return {
        index: left.get(index, frozenset()) | right.get(index, frozenset())
        for index in sorted({*left, *right})
    }


def _intersection(left: Matches, right: Matches) -> Matches:
    # Two selectors may meet in a tied tensor under different names: keep both names then.
    return {
        index: (left[index] & right[index]) or (left[index] | right[index])
        for index in left
        if index in right
    }


def _nothing(matcher: Matcher, inventory: Inventory) -> str:
    """Why nothing matched, and what may have been meant."""
    selector = str(Selector(matcher))
    names = [alias.name for group in inventory.groups for alias in group.aliases]
    if not names:
        return f"selector {selector!r}: the model has no parameters"
    message = f"selector {selector!r} matches none of the model's {len(names)} parameters."
    if isinstance(matcher, OfClass):
        wanted = [c if isinstance(c, str) else c.__name__ for c in matcher.classes]
        return message + nearest(wanted[0], class_names(inventory.placements))
    if isinstance(matcher, Glob):
        deeper = Glob(f"{matcher.pattern}.**")
        if deeper.find(inventory):
            return message + (
                " A glob is matched against whole parameter names and '*' does not cross a dot:"
                f" did you mean {deeper.pattern!r}?"
            )
    if isinstance(matcher, Dotted | Glob):
        return message + nearest(matcher.plain().rstrip(".*"), names)
    if isinstance(matcher, AllOf):
        return message + " Each part matches something, but no parameter matches all of them."
    if isinstance(matcher, Not):
        return message + " Its opposite matches everything."
    return message
