"""The classes: how the data name them, how the model does, and the numbers between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frostline.errors import ConfigError
from frostline.finetune.sources.raw import Table
from frostline.selection.suggest import nearest
from frostline.units import format_names


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Names of the classes and the number of each value that stands for one in the data.

    Attributes:
        names: in the order of the logits.
        number_of: from a value in the data to its class.
        is_models: whether they are the classes that the model's head already tells apart.
    """

    names: tuple[str, ...]
    number_of: Mapping[Any, int]
    is_models: bool

    def numbers(self, values: Sequence[Any]) -> list[int]:
        """The class of each value."""
        return [self.number_of[value] for value in values]


def declared_names(table: Table, column: str) -> tuple[str, ...]:
    """The class names that a ``datasets`` column of classes declares; empty if it is none."""
    feature = table.features[column]
    feature = getattr(feature, "feature", feature)  # of a list: of its entries
    return tuple(getattr(feature, "names", None) or ())


def resolve_classes(
    values: Sequence[Any],
    *,
    source: str,
    declared: Sequence[str] = (),
    known: Mapping[int, str] | None = None,
) -> Classes:
    """Decide which classes there are, and in which order.

    The model's own classes, if its head tells apart what the data name; else those that the data
    declare; else the different values, sorted.

    Args:
        values: of every sample (or token), held out or not; texts or whole numbers.
        source: of the data, for messages.
        declared: names by number, where ``values`` are numbers that stand for them.
        known: the classes of a head that the model's checkpoint holds, by number.

    Raises:
        ConfigError: values are missing or of other types; only one class is there; or the model
            knows most of the classes, but not all.

    >>> resolve_classes(["pos", "neg", "pos"], source="a.csv").names
    ('neg', 'pos')
    >>> resolve_classes(["10", "9"], source="a.csv").names
    ('9', '10')
    """
    _check_values(values, source)
    present = sorted(set(values), key=_order)
    if declared:
        _check_range(present, len(declared), source)
        named: dict[Any, str] = dict(enumerate(declared))
    else:
        named = {value: str(value) for value in present}
    if len({named[value] for value in present}) < 2:
        raise ConfigError(
            f"data {source!r} has a single class, {named[present[0]]!r}: there is nothing to tell"
            " apart. Add samples of another class, or name another label column"
        )
    taken = _taken_over(named, present, known or {}, source)
    if taken is not None:
        return Classes(names=_in_order(known or {}), number_of=taken, is_models=True)
    number_of = {value: place for place, value in enumerate(named)}
    return Classes(names=tuple(named.values()), number_of=number_of, is_models=False)


def _check_values(values: Sequence[Any], source: str) -> None:
    missing = [row for row, value in enumerate(values, 1) if value is None or value == ""]
    if missing:
        raise ConfigError(
            f"data {source!r}: {len(missing)} of {len(values)} samples have no label, the first is"
            f" number {missing[0]}: label them, or remove them"
        )
    odd = next((value for value in values if not isinstance(value, str | int)), None)
    if odd is not None:
        raise ConfigError(
            f"data {source!r}: a label should be a text or a whole number, got {odd!r}"
        )


def _check_range(present: Sequence[Any], count: int, source: str) -> None:
    outside = [value for value in present if not (isinstance(value, int) and 0 <= value < count)]
    if outside:
        raise ConfigError(
            f"data {source!r} declares {count} classes, numbers 0 to {count - 1}, but has samples"
            f" of class {format_names([str(value) for value in outside])}: those have no label;"
            " leave them out"
        )


def _taken_over(
    named: Mapping[Any, str], present: Sequence[Any], known: Mapping[int, str], source: str
) -> dict[Any, int] | None:
    """From the data's values to the model's classes; None where those are others."""
    if not known:
        return None
    if not _are_generic(known):
        models = {name.lower(): number for number, name in known.items()}
        unknown = [named[value] for value in present if named[value].lower() not in models]
        if not unknown:
            lowered = {value: name.lower() for value, name in named.items()}
            return {value: models[name] for value, name in lowered.items() if name in models}
        if len(unknown) * 2 < len(present):
            raise ConfigError(
                f"data {source!r} has labels that the model does not know:"
                f" {format_names([repr(name) for name in unknown])}."
                f"{nearest(unknown[0], known.values())} It knows the other"
                f" {len(present) - len(unknown)}. Rename these as the model does; or, for a new"
                " head, name none of them as the model does"
            )
    # Numbers without a name are the model's own where there are as many.
    numbers = {value: int(name) for value, name in named.items() if name.isdecimal()}
    return numbers if sorted(numbers.values()) == sorted(known) else None


def _are_generic(known: Mapping[int, str]) -> bool:
    """Whether the names say nothing: what transformers writes where nobody named the classes."""
    return all(name == f"LABEL_{number}" for number, name in known.items())


def _in_order(known: Mapping[int, str]) -> tuple[str, ...]:
    return tuple(known[number] for number in sorted(known))


def _order(value: Any) -> tuple[int, int, str]:
    """Numbers by size, before all else by the alphabet."""
    text = str(value)
    return (0, int(text), "") if text.lstrip("-").isdecimal() else (1, 0, text)
