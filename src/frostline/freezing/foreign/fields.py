"""The fields of another program's configuration, read with their types checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

from frostline.errors import PlanError
from frostline.selection import Selector

Rules: TypeAlias = list[tuple[Literal["freeze", "train"], Selector]]
"""What a plan is made of: in order, the last match wins."""


class Fields:
    """A configuration and what to call it.

    Attributes:
        place: the file and the program whose format it is, for errors.
    """

    def __init__(self, values: Mapping[object, object], *, place: str) -> None:
        self._values = values
        self.place = place

    def __iter__(self) -> Iterator[str]:
        return iter(map(str, self._values))

    def raw(self, key: str) -> object:
        """The value as it stands; None if there is none."""
        return self._values.get(key)

    def whole_number(self, key: str, *, default: int) -> int:
        """A whole number; raises PlanError for anything else."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, f"expected a whole number, got {value!r}")
        return value

    def share(self, key: str) -> float:
        """A number from 0 to 1, 0 if there is none; raises PlanError for anything else."""
        value = self._values.get(key)
        if value is None:
            return 0.0
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise self.error(key, f"expected a number from 0 to 1, got {value!r}")
        return float(value)

    def strings(self, key: str, *, commas: bool = False) -> list[str]:
        """A list of strings, or one string, with ``commas`` split at them; empty if there is none.

        Raises PlanError for anything else.
        """
        value = self._values.get(key)
        if value is None:
            return []
        if isinstance(value, str):
            value = value.split(",") if commas else [value]
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.error(key, f"expected a list of strings, got {value!r:.80}")
        stripped = [text.strip() for text in value]
        if not all(stripped):
            raise self.error(key, "an entry is empty: name what is meant, or drop it")
        return stripped

    def text(self, key: str) -> str | None:
        """One string that is not empty; None if there is none; raises PlanError otherwise."""
        value = self._values.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self.error(key, f"expected a string, got {value!r}")
        return value

    def refuse(self, key: str, unless: object, why: str) -> None:
        """Raise PlanError if the field says something else than ``unless``, its harmless value."""
        value = self._values.get(key)
        if value is not None and value != unless:
            raise PlanError(f"{self.place}: '{key}: {value}' can't be said by a plan: {why}")

    def error(self, key: str, what: str) -> PlanError:
        """An error about one field."""
        return PlanError(f"{self.place}: {key}: {what}")
